#!/usr/bin/env bash
# The whole way on a laptop: a sweep on real text, the fitted curves, the next size promoted from
# them, trained, and held against its forecast. Prints each command, so that it teaches them.
# Run it again and nothing is trained twice.
set -euo pipefail
cd "$(dirname "$0")"
started=$SECONDS

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi

step() {
    printf '\n%s$ windtunnel %s%s\n' "$bold" "$*" "$plain"
    windtunnel "$@"
}
refused=4

step sweep sweep=quickstart
step status sweep=quickstart
step fit sweep=quickstart
step promote sweep=quickstart target=next_rung gates=laptop
code=0
step launch promotion=latest || code=$?
if [ "$code" != 0 ] && [ "$code" != "$refused" ]; then exit "$code"; fi
step ledger
step report sweep=quickstart

printf '\nThe whole demo took %d s. The report is tunnel/sweeps/quickstart/report/index.html\n' \
    $((SECONDS - started))
if [ "$code" = "$refused" ]; then
    printf '%s\n' 'Its gates refused the launch: on the text of your library the evidence is too thin. That is' \
        'an answer too. To train it all the same, and keep your reason in the ledger, name each gate that' \
        "was crossed: windtunnel launch promotion=latest override.holdout_error='to see it miss'"
fi
exit "$code"
