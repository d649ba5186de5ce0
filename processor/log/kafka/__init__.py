"""The log on Kafka, over librdkafka. May import `processor.log`, not the embedded adapter."""
