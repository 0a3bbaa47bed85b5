"""One file per stage: functions of (config, work directory)."""
