"""The topic `spendstream.users`, a row for each user, on Kafka. May import the state, the view and the log."""
