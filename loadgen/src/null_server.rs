//! null_server
