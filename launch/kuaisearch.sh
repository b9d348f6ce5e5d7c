#!/usr/bin/env bash
# KuaiSearch: from the downloaded folder (recall.jsonl, users.jsonl, items.jsonl) to HR@16 and MRR@16 on its newest
# searches, beside most popular completion. It has no typed prefixes: they are drawn (logs/kuaisearch.py).
#   bash launch/kuaisearch.sh --data FOLDER
#   bash launch/kuaisearch.sh --data FOLDER --work work/kuaisearch --gin.MODEL=small
# Run again, it goes on where it stopped. Further words go to `python -m onesug_jax.main run`.
ONESUG_CONFIG=gin_configs/kuaisearch.gin exec bash "$(dirname "${BASH_SOURCE[0]}")/public_log.sh" "$@"
