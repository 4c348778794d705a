//! What runs once per process. ARCHITECTURE.md has the shape and its reasons.

pub mod reducer;
