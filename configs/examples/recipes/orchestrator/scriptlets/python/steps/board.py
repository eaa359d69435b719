"""
NAME: board.py
DESCRIPTION: Judge the supply voltages of one board.
RETURNS: {"status":"ok", ...}
"""
from orchestrator.scriptlets.python.core.base import BaseScriptlet


class Measure(BaseScriptlet):
    def validate(self, ctx, params):
        assert isinstance(params["serial"], str) and params["serial"], "serial must be a string"
        assert params["volts"], "volts must have values"

    def run(self, ctx, params):
        ctx.set("board.serial_v1", params["serial"], who="measure")
        ctx.set("board.volts_v1", [float(volt) for volt in params["volts"]], who="measure")
        return {"status": "ok", "count": len(params["volts"])}


def ripple(ctx, params):
    volts = ctx.get("board.volts_v1")
    ctx.set("board.ripple_v1", round(max(volts) - min(volts), 3), who="ripple")
    return {"status": "ok", "key": "board.ripple_v1"}


def limits(ctx, params):
    outside = [volt for volt in ctx.get("board.volts_v1") if not params["low"] <= volt <= params["high"]]
    ctx.set("board.outside_v1", outside, who="limits")
    return {"status": "ok", "key": "board.outside_v1"}


def verdict(ctx, params):
    serial, outside = ctx.get("board.serial_v1"), ctx.get("board.outside_v1")
    if outside:
        return {"status": "error", "reason": f"board {serial}: {outside} V are outside of its limits"}
    ctx.set("board.verdict_v1", "pass", who="verdict")
    return {"status": "ok", "verdict": "pass", "ripple": ctx.get("board.ripple_v1")}
