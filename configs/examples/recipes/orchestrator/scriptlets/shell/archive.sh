#!/bin/sh
# NAME: archive.sh
# DESC: Pack a file; a second time comes to the same.
# USAGE: INPUT=orders.csv OUTPUT=archive/orders.csv.gz archive.sh
# RETURNS: {"status":"ok","bytes":<int>}
set -eu
gzip -c "$INPUT" > "$OUTPUT.part"
mv "$OUTPUT.part" "$OUTPUT"
echo "{\"status\":\"ok\",\"bytes\":$(wc -c < "$OUTPUT" | tr -d ' ')}"
