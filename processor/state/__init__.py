"""A partition: loaded, applied, flushed, compacted, retained, verified. May import the ids, the log and the core."""
