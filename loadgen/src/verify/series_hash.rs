//! A series as 64 bits, whichever order its tags come in, and the fields of JSON that make it up.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

// Any constants: the hash never leaves the process, and what it is given is no attacker's.
const STATE: ahash::RandomState = ahash::RandomState::with_seeds(1, 2, 3, 4);

#[inline]
pub fn of_name(name: &str) -> u64 {
    STATE.hash_one(name)
}

/// Hashes of tags are added up.
#[inline]
pub fn of_tag(key: &str, value: &str) -> u64 {
    STATE.hash_one((key, value))
}

#[inline]
pub fn of_place(series: u64, a: i64, b: u32) -> u64 {
    STATE.hash_one((series, a, b))
}

#[inline]
pub fn of_bytes(bytes: &[u8]) -> u64 {
    STATE.hash_one(bytes)
}

#[inline]
pub fn of_record(place: u64, value: &str, client: &str) -> u64 {
    STATE.hash_one((place, value, client))
}

/// A string that is borrowed unless it has escapes.
#[derive(Debug, Default)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Text<'a>, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_string())))
            }
        }
        from.deserialize_str(TextVisitor)
    }
}

/// An object of strings, in its order.
#[derive(Debug, Default)]
pub struct Pairs<'a>(pub Vec<(Text<'a>, Text<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Pairs<'a>, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(PairsVisitor)
    }
}

/// The tags of a point, by their hash.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tags(pub u64);

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Tags, D::Error> {
        struct TagsVisitor;
        impl<'de> Visitor<'de> for TagsVisitor {
            type Value = Tags;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tags, A::Error> {
                let mut sum = 0_u64;
                while let Some((key, value)) = map.next_entry::<Text<'de>, Text<'de>>()? {
                    sum = sum.wrapping_add(of_tag(&key.0, &value.0));
                }
                Ok(Tags(sum))
            }
        }
        from.deserialize_map(TagsVisitor)
    }
}
