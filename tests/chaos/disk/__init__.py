"""Power cuts: a record of what processes wrote and what they made durable, and disks as a cut may leave them."""
