#!/usr/bin/env bash
# KuaiSearch: trains on the downloaded folder (recall.jsonl, users.jsonl, items.jsonl), and compares HR@16 and MRR@16
# on its newest searches with most popular completion. Prefixes are drawn, as it has none (logs/kuaisearch.py).
#   bash launch/kuaisearch.sh --data FOLDER
#   bash launch/kuaisearch.sh --data FOLDER --work work/kuaisearch --gin.MODEL=small
# A second run continues. Other words go to `python -m onesug_jax.main run`.
ONESUG_CONFIG=gin_configs/kuaisearch.gin exec bash "$(dirname "${BASH_SOURCE[0]}")/public_log.sh" "$@"
