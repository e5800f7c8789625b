#!/usr/bin/env bash
# Writes the report, the job summary and the step's outputs. A step of action.yml.
set -euo pipefail

report="${RUNNER_TEMP:-/tmp}/fgcompile-report.md"
arguments=("$BASE" --models "$MODELS" --max-chars "$MAX_CHARS" --output "$report")
while IFS= read -r budget; do
  if [ -n "$budget" ]; then
    arguments+=(--budget "$budget")
  fi
done <<<"$BUDGETS"

python -m fgcompile.cli changed "${arguments[@]}"
echo "report=$report" >>"$GITHUB_OUTPUT"
