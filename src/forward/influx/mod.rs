//! InfluxDB as a sink.
