#!/usr/bin/env bash
# A chat in the terminal over POST /completion. Needs bash, curl and jq.
#   bash chat.sh          environment: API_URL (http://127.0.0.1:8080), API_KEY (if the server wants a key)
# CHAT holds the dialogue. With n_keep the instruction stays when the context overflows. All questions use the same slot,
# so the server computes only the new tokens.
set -euo pipefail

API_URL="${API_URL:-http://127.0.0.1:8080}"
N_PREDICT="${N_PREDICT:-256}"
HEADERS=(-H "Content-Type: application/json")
[[ -n "${API_KEY:-}" ]] && HEADERS+=(-H "Authorization: Bearer $API_KEY")

INSTRUCTION="The following is a talk between a human and a helpful assistant. The answers are short and correct."
CHAT=(
    "Good morning."
    "Good morning! What can I do for you?"
    "Which planet is the largest one?"
    "Jupiter is the largest planet of the solar system."
)
ID_SLOT=-1

post() {  # path; the body is on stdin
    curl --silent --show-error --no-buffer --fail-with-body "${HEADERS[@]}" --data-binary @- "$API_URL$1"
}

format_prompt() {  # question
    printf '%s' "$INSTRUCTION"
    local i
    for ((i = 0; i < ${#CHAT[@]}; i += 2)); do
        printf '\n### Human: %s\n### Assistant: %s' "${CHAT[i]}" "${CHAT[i + 1]}"
    done
    printf '\n### Human: %s\n### Assistant:' "$1"
}

ask() {  # question
    local body line data piece answer="" truncated=false
    body="$(format_prompt "$1" | jq --raw-input --slurp --argjson n_predict "$N_PREDICT" \
        --argjson n_keep "$N_KEEP" --argjson id_slot "$ID_SLOT" '{
            prompt: ., temperature: 0.2, top_k: 40, top_p: 0.9, n_predict: $n_predict, n_keep: $n_keep,
            slot_id: $id_slot, cache_prompt: true, stop: ["\n### Human:"], stream: true}')"
    while IFS= read -r line; do
        if [[ "$line" == "{"* ]]; then      # an error is plain JSON
            printf 'error: %s\n' "$(jq --raw-output '.error.message' <<<"$line")" >&2
            return 1
        fi
        [[ "$line" == "data: "* ]] || continue
        data="${line#data: }"
        # $( ) would cut line breaks at the end of a piece; the dot protects them
        piece="$(jq --raw-output --join-output '.content + "."' <<<"$data")"
        piece="${piece%.}"
        printf '%s' "$piece"
        answer+="$piece"
        if [[ "$(jq '.stop' <<<"$data")" == true ]]; then
            ID_SLOT="$(jq '.slot_id' <<<"$data")"
            truncated="$(jq '.truncated' <<<"$data")"
        fi
    done < <(post /completion <<<"$body" || true)
    printf '\n'
    [[ "$truncated" == true ]] && CHAT=("${CHAT[@]:2}")
    CHAT+=("$1" "${answer# }")
}

N_KEEP="$(jq --null-input --arg content "$INSTRUCTION" '{content: $content}' | post /tokenize | jq '.tokens | length')"

while IFS= read -r -e -p "> " QUESTION; do
    ask "$QUESTION" || exit 1
done
