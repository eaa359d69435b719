"""Bytes: packed, hashed, signed, compressed and encoded."""
import array
import base64
import binascii
import hashlib
import hmac
import secrets
import struct
import uuid
import zlib
from array import array as make_array


def check_struct():
    packed = struct.pack("!IH4sd", 7, 42, b"tick", 1.5)
    header = struct.Struct("<hh")
    buffer = bytearray(8)
    header.pack_into(buffer, 2, 1, -1)
    return [packed.hex(), struct.unpack("!IH4sd", packed)[2].decode(), struct.calcsize("!IH4sd"), list(header.iter_unpack(b"\x01\x00\x02\x00\x03\x00\x04\x00")), buffer.hex(), header.size, struct.unpack_from(">H", b"\x00\x00\x01\x02", 2)]


def check_hashes():
    digest = hashlib.sha256(b"payload")
    digest.update(b" more")
    key = b"secret"
    signature = hmac.new(key, b"body", hashlib.sha256).hexdigest()
    again = hmac.new(key, msg=b"body", digestmod="sha256")
    return [digest.hexdigest()[:16], hashlib.md5("x".encode()).hexdigest(), hashlib.new("sha1", b"a").digest().hex(), hashlib.blake2b(b"x", digest_size=8).hexdigest(), signature[:16], hmac.compare_digest(signature, again.hexdigest()), hashlib.pbkdf2_hmac("sha256", b"p", b"s", 1000).hex()[:8], digest.name, digest.digest_size, hmac.digest(key, b"x", "sha256").hex()[:8], hashlib.sha3_256(b"").hexdigest()[:8], digest.copy().hexdigest() == digest.hexdigest()]


def check_ids():
    name = uuid.uuid5(uuid.NAMESPACE_URL, "https://example.com/orders/1")
    return [str(name), str(uuid.uuid3(uuid.NAMESPACE_DNS, "x")), uuid.uuid4().version, uuid.UUID("12345678123456781234567812345678").hex, name.int % 97, name == uuid.UUID(str(name)), len(secrets.token_hex(8)), 0 <= secrets.randbelow(5) < 5, name.bytes.hex()[:4], name.urn, sorted([name, uuid.UUID(int=1)])[0].int, secrets.compare_digest("a", "a"), isinstance(name, uuid.UUID)]


def check_base64():
    raw = bytes(range(6))
    try:
        base64.b64decode("abc")
    except binascii.Error as err:
        bad = str(err)
    try:
        base64.b64decode("abc")
    except ValueError as err:
        bad = type(err).__name__
    return [base64.b64encode(raw).decode(), base64.urlsafe_b64encode(b"\xff\xfe").decode().rstrip("="), base64.b64decode("AAEC"), base64.b32encode(b"hi").decode(), base64.b16encode(b"hi").decode(), base64.b85encode(b"hello").decode(), binascii.hexlify(b"ab").decode(), binascii.unhexlify("6162").decode(), binascii.crc32(b"x"), bad, base64.b64decode("AAE=", validate=True)] and [base64.b64encode(raw).decode(), bad, binascii.hexlify(b"ab").decode()]


def check_compression():
    data = b"abc" * 100
    small = zlib.compress(data, 9)
    packer = zlib.compressobj()
    streamed = packer.compress(data) + packer.flush()
    unpacker = zlib.decompressobj()
    return [len(small) < len(data), zlib.decompress(small) == data, zlib.crc32(data), zlib.adler32(b"x"), unpacker.decompress(streamed) == data]


def check_bytes():
    b = bytearray(b"hello")
    b[0] = ord("J")
    b += b"!"
    b.extend([33])
    del b[1]
    view = memoryview(b"abcdef")
    part = view[2:4]
    return [b.decode(), bytes(b).upper().decode(), b"a,b".split(b","), b"abc"[1], b"abc"[1:].decode(), bytes([65, 66]).decode(), b"x".hex(), part.tobytes().decode(), len(view), view[0], b"%d" % 5 == b"5", b"ab".find(b"b"), bytes(3) == b"\x00" * 3, b"\xff".decode("utf-8", errors="replace"), list(b"ab"), b"ab" + b"c" == b"abc", b"a" in b"abc", memoryview(bytearray(2)).readonly, bytes(part) == b"cd", b"x".join([b"a", b"b"]).decode(), b"ab".startswith(b"a"), b.pop(), int.from_bytes(view[:2], "big"), view.nbytes, view.tolist()[:2]]


def check_array():
    a = array.array("d", [1.0, 2.0])
    a.append(3.5)
    b = make_array("H", b"\x01\x00\x02\x00")
    return [a.tolist(), sum(a), a.typecode, len(b), b[0], b.tobytes().hex(), a[1:].tolist(), make_array("i", range(3)).itemsize]


def check_varint():
    def encode(n):
        out = bytearray()
        while True:
            n, low = n >> 7, n & 0x7F
            out.append(low | (0x80 if n else 0))
            if not n:
                return bytes(out)
    def decode(data):
        return sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(data))
    return [encode(300).hex(), decode(encode(123456))]


def check_consistent_hash():
    ring = sorted((int.from_bytes(hashlib.sha256(f"{n}-{i}".encode()).digest()[:4], "big"), n) for n in "abc" for i in range(5))
    import bisect
    def owner(key):
        h = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        return ring[bisect.bisect(ring, (h, "")) % len(ring)][1]
    return [owner(f"k{i}") for i in range(6)]


class Runnable:
    def process(self, queries):
        return [
            check_struct(),
            check_hashes(),
            check_ids(),
            check_base64(),
            check_compression(),
            check_bytes(),
            check_array(),
            check_varint(),
            check_consistent_hash(),
        ]
