#!/usr/bin/env bash
# AmazonQAC (huggingface.co/datasets/amazon/AmazonQAC, CDLA-Permissive-2.0): trains on the downloaded Parquet
# folder (train/ and test/), and compares Success@10 and MRR@10 on the test file with most popular completion.
#   bash launch/amazonqac.sh --data FOLDER
#   bash launch/amazonqac.sh --data FOLDER --work work/amazonqac --gin.MODEL=base --gin.BATCH_SIZE=1024
# A second run continues. Other words go to `python -m onesug_jax.main run`.
ONESUG_CONFIG=gin_configs/amazonqac.gin exec bash "$(dirname "${BASH_SOURCE[0]}")/public_log.sh" "$@"
