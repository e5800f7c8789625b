#!/usr/bin/env bash
# Keeps one comment up to date. A step of action.yml.
# A pull request from a fork gets a token that may not write: the report is in the job
# summary already, so that is said, and is no failure.
set -uo pipefail

marker="<!-- fgcompile-diff:$KEY -->"
body="$(mktemp)"
# The key goes into the first line, which the report leaves for a hidden marker.
{ echo "$marker"; tail -n +2 "$REPORT"; } >"$body"

find_comment() {
  gh api --paginate "repos/$REPOSITORY/issues/$NUMBER/comments" \
    --jq ".[] | select(.body | startswith(\"$marker\")) | .id" | head -n 1
}

if ! comment="$(find_comment)"; then
  echo "::notice::The comments cannot be read with this token; see the job summary."
  exit 0
fi
if [ -n "$comment" ]; then
  method=PATCH path="repos/$REPOSITORY/issues/comments/$comment"
elif [ "$DIFFERS" = true ]; then
  method=POST path="repos/$REPOSITORY/issues/$NUMBER/comments"
else
  echo "No model changed and there is no comment to update."
  exit 0
fi
if ! gh api --silent --method "$method" "$path" --field "body=@$body"; then
  echo "::notice::This token may not comment (a fork?); see the job summary."
fi
