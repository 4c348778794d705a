//! Replays of small logs to a sink in memory.
