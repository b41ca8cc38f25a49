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

step sweep sweep=quickstart
step status sweep=quickstart
step fit sweep=quickstart
step promote sweep=quickstart target=next_rung gates=laptop
step launch promotion=latest
step ledger
step report sweep=quickstart

printf '\nThe whole demo took %d s. The report is tunnel/sweeps/quickstart/report/index.html\n' \
    $((SECONDS - started))
