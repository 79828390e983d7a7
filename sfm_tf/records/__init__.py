"""The stored form of images: TFRecord shards, their schema, statistics and anomalies."""
