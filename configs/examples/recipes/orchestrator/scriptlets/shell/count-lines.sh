#!/bin/sh
# NAME: count-lines.sh
# DESC: Count lines in a text file and emit JSON.
# USAGE: INPUT=orchestrator/Data/file.txt orchestrator/scriptlets/shell/count-lines.sh
# RETURNS: {"status":"ok","lines":<int>}
set -eu
if [ ! -f "$INPUT" ]; then
  echo '{"status":"error","reason":"missing file"}'
  exit 1
fi
echo "{\"status\":\"ok\",\"lines\":$(wc -l < "$INPUT" | tr -d ' ')}"
