#!/bin/bash
# The program of frontend.service on h3: it knows nothing of the mesh. It makes CALLS calls to URL, as USER when that is set, one
# connection each, until it is told to end (SIGTERM), and prints a line "STATUS TIME SECONDS BODY" for every one.
trap 'CALLS=0' TERM
for ((i = 0; i < CALLS; i++)); do
  out=$(curl -sS -m 10 ${AS:+-H "end-user: $AS"} -w '\n%{http_code} %{time_total}' "$URL" 2>&1)
  last=${out##*$'\n'}
  echo "${last% *} $EPOCHREALTIME ${last#* } ${out%%$'\n'*}"
done
