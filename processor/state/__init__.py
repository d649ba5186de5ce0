"""Storage behind the core's protocols: the claims on disk, the rows as a Faust table, the flush that ties them."""
