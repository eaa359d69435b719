"""Smaller modules of the standard library that people reach for."""
import calendar
import colorsys
import copy
import difflib
import fnmatch
import ipaddress
import keyword
import operator
import posixpath

import time
import types
import warnings
from email.utils import formatdate, parseaddr, parsedate_to_datetime
from graphlib import CycleError, TopologicalSorter
from ipaddress import ip_address, ip_network
from queue import Empty, PriorityQueue, Queue


def check_graph():
    order = list(TopologicalSorter({"d": {"b", "c"}, "b": {"a"}, "c": {"a"}}).static_order())
    sorter = TopologicalSorter()
    sorter.add("x", "y")
    try:
        list(TopologicalSorter({"a": ["b"], "b": ["a"]}).static_order())
    except CycleError as err:
        cycle = err.args[0]
    sorter.prepare()
    return [order[0], order[-1], cycle, list(sorter.get_ready())]


def check_addresses():
    net = ip_network("10.0.0.0/8")
    return [ip_address("10.1.2.3") in net, str(ip_address("10.1.2.3")), ip_address("::1").is_loopback, ip_address("192.168.0.1").is_private, net.num_addresses, str(net.network_address), int(ip_address("0.0.1.0")), str(ipaddress.ip_interface("10.0.0.5/24").network), sorted([ip_address("10.0.0.9"), ip_address("10.0.0.1")])[0].compressed, [str(h) for h in ip_network("10.0.0.0/30").hosts()], ip_address("1.1.1.1").version, isinstance(net, ipaddress.IPv4Network), ip_network("10.1.0.0/16").subnet_of(net)]


def check_bad_address():
    try:
        ip_address("999.1.1.1")
    except ValueError as err:
        return str(err)


def check_colors():
    return [[round(c, 3) for c in colorsys.rgb_to_hsv(0.2, 0.4, 0.4)], keyword.iskeyword("if"), "match" in keyword.softkwlist, colorsys.hsv_to_rgb(0.5, 0.5, 0.4)[2]]


def check_paths():
    return [posixpath.join("a", "b", "c.txt"), posixpath.basename("/x/y.csv"), posixpath.splitext("y.csv"), posixpath.dirname("/a/b"), posixpath.normpath("a/../b"), fnmatch.fnmatch("orders.eu", "orders.*"), fnmatch.filter(["a.txt", "b.csv"], "*.csv")]


def check_time():
    start = time.perf_counter()
    return [time.time() > 1.6e9, time.perf_counter() >= start, time.monotonic() > 0, time.strftime("%Y-%m-%d", time.gmtime(0)), time.gmtime(86400).tm_mday, calendar.timegm((1970, 1, 2, 0, 0, 0)), calendar.monthrange(2024, 2), calendar.isleap(2024), calendar.month_name[3], calendar.day_abbr[0], time.strptime("2024", "%Y").tm_year, isinstance(time.time_ns(), int), time.gmtime(0)[:3]]


def check_copy():
    class Node:
        def __init__(self, v): self.v, self.next = v, None
    a = Node([1])
    a.next = a
    b, c = copy.copy(a), copy.deepcopy(a)
    b.v.append(2)
    class Own:
        def __init__(self, x): self.x = x
        def __copy__(self): return Own(self.x + 1)
        def __deepcopy__(self, memo): return Own(copy.deepcopy(self.x, memo) + 2)
    return [a.v, c.v, c.next is c, b.next is a, copy.deepcopy({"a": [1]}), copy.copy(Own(1)).x, copy.deepcopy([Own(1)])[0].x]


def check_difflib():
    return [difflib.get_close_matches("appel", ["ape", "apple"]), round(difflib.SequenceMatcher(None, "abcd", "bcde").ratio(), 3), list(difflib.unified_diff(["a"], ["b"], lineterm=""))[-1], len(list(difflib.ndiff(["a"], ["b"])))]


def check_namespace():
    ns = types.SimpleNamespace(a=1, b=[2])
    ns.c = 3
    ns.a += 1
    frozen = types.MappingProxyType({"x": 1})
    try:
        frozen["y"] = 2
    except TypeError:
        ro = True
    return [ns.a, ns.c, repr(ns), frozen["x"], ro, ns == types.SimpleNamespace(a=2, b=[2], c=3), isinstance(lambda: 0, types.FunctionType), isinstance((x for x in ()), types.GeneratorType), isinstance(None, types.NoneType)]


def check_queues():
    q = Queue()
    q.put(1); q.put_nowait(2)
    out = [q.get(), q.qsize(), q.get_nowait(), q.empty()]
    try:
        q.get_nowait()
    except Empty:
        out.append("empty")
    p = PriorityQueue()
    for item in ((2, "b"), (1, "a")): p.put(item)
    return out + [p.get()[1]]


def check_warnings():
    warnings.warn("old", DeprecationWarning)
    warnings.warn("also old", stacklevel=2)
    warnings.filterwarnings("ignore")
    return "warned"


def check_email():
    return [parseaddr("Ann <ann@example.com>"), parsedate_to_datetime("Mon, 01 Jan 2024 10:00:00 +0000").isoformat(), formatdate(0)]


def check_operator():
    return [operator.itemgetter("a", "b")({"a": 1, "b": 2}), operator.contains([1], 1), operator.setitem([0], 0, 1), operator.attrgetter("real")(3), operator.itemgetter(slice(1, 3))("abcd"), operator.iadd([1], [2]), operator.truth([]), operator.neg(3), operator.concat("a", "b"), operator.length_hint([1]), operator.call(len, "ab")]


class Runnable:
    def process(self, queries):
        return [
            check_graph(),
            check_addresses(),
            check_bad_address(),
            check_colors(),
            check_paths(),
            check_time(),
            check_copy(),
            check_difflib(),
            check_namespace(),
            check_queues(),
            check_warnings(),
            check_email(),
            check_operator(),
        ]
