#!/bin/sh
# The program of frontend.service on h3: it knows nothing of the mesh. It makes CALLS calls to URL, as USER when that is set, one
# connection each, and prints a line "STATUS BODY" for every one.
i=0
while [ $i -lt "$CALLS" ]; do
  i=$((i + 1))
  curl -sS -m 10 ${AS:+-H "end-user: $AS"} -w '\n%{http_code}\n' "$URL" 2>&1 | awk '{l[NR] = $0} END {print l[NR], l[1]}'
done
