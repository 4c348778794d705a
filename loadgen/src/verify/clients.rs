//! What a source calls the client of a point, against what the plan says.

use super::Options;
use super::expected::{Expected, Sent};

pub struct Clients<'a> {
    expected: &'a Expected,
    /// Stated by the operator
    is_stated: bool,
    /// What the server calls all clients, where the plan leaves it open
    one_name: Option<String>,
}

impl<'a> Clients<'a> {
    pub fn new(expected: &'a Expected, options: &Options) -> Clients<'a> {
        Clients { expected, is_stated: options.client.is_some(), one_name: options.client.clone() }
    }

    /// What was expected instead, in words; `None`: `client` is right.
    pub fn wrong(&mut self, batch: &Sent, client: &str) -> Option<String> {
        let planned = if self.is_stated { None } else { self.expected.client_name(batch) };
        // Where nobody said, whatever the first was taken for.
        let wanted = match &planned {
            Some(name) => name,
            None => self.one_name.get_or_insert_with(|| client.to_string()),
        };
        (client != wanted)
            .then(|| format!("the client {wanted:?} (say --client NAME when the server names clients otherwise)"))
    }
}
