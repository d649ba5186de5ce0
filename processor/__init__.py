"""The stream application: the pure core, the log, the state behind it, and the Faust app that ties them together."""
