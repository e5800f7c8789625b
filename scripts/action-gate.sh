#!/usr/bin/env bash
# Fails where the workflow asked for it. A step of action.yml.
set -euo pipefail

fail() {
  echo "::error::$1"
  exit 1
}

case "$FAIL_ON" in
  never) ;;
  any) [ "$DIFFERS" != true ] || fail "a model changed" ;;
  budget) [ "$WITHIN_BUDGET" != false ] || fail "a budget is exceeded" ;;
  breaking)
    [ "$WITHIN_BUDGET" != false ] || fail "a budget is exceeded"
    [ "$BREAKING" != true ] || fail "an interface change breaks callers"
    ;;
  *) fail "fail-on is one of never, budget, breaking, any; not $FAIL_ON" ;;
esac
