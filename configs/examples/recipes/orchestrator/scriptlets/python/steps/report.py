"""
NAME: report.py
DESCRIPTION: Say in the context what was archived.
RETURNS: {"status":"ok","key":"report.title_v1"}
"""
from orchestrator.scriptlets.python.core.base import BaseScriptlet
from orchestrator.scriptlets.python.core.logging import get_logger
from orchestrator.scriptlets.python.core.resource import track_resources

logger = get_logger(__name__)


class Report(BaseScriptlet):
    def validate(self, ctx, params):
        assert isinstance(params["title"], str), "title must be string"

    @track_resources
    def run(self, ctx, params):
        ctx.set("report.title_v1", params["title"], who="report")
        ctx.set("report.path_v1", params["path"], who="report")
        logger.info("archived %s", params["path"])
        return {"status": "ok", "key": "report.title_v1"}
