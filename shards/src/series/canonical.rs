//! How a series is named: tags sorted, the last of equal keys, none empty, the operator's tags where the client has none.

use crate::point::series_key::{FIELD, PAIR};

/// Key and value
pub(super) type Tag = (Box<[u8]>, Box<[u8]>);
/// Sorted by key, keys unique
pub(super) type TagSet = Vec<Tag>;

/// `tags` over `base`: the last of equal keys wins, empty keys and values are dropped.
pub(super) fn tag_set(tags: &[(&str, &str)], base: &[Tag]) -> TagSet {
    let mut set: TagSet = base.to_vec();
    for (key, value) in tags {
        set.retain(|(other, _)| **other != *key.as_bytes());
        if !key.is_empty() && !value.is_empty() {
            set.push((key.as_bytes().into(), value.as_bytes().into()));
        }
    }
    set.sort();
    set
}

/// Appends `name (0xFF tagkey 0xFE tagvalue)*` to a key that already has its client. Leaves `tags` sorted, the last of equal
/// keys only.
pub(super) fn write(out: &mut Vec<u8>, name: &[u8], tags: &mut Vec<(&[u8], &[u8])>, defaults: &[Tag]) {
    out.extend_from_slice(name);
    if !tags.is_sorted_by(|a, b| a.0 < b.0) {
        tags.sort_by_key(|tag| tag.0); // stable: equal keys stay in order
        // Of equal neighbours `dedup` keeps the first; the value of the last moves there.
        tags.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = later.1;
            }
            same
        });
    }
    let mut defaults = defaults.iter().map(|(key, value)| (&**key, &**value)).peekable();
    let mut push = |(key, value): (&[u8], &[u8])| {
        out.push(FIELD);
        out.extend_from_slice(key);
        out.push(PAIR);
        out.extend_from_slice(value);
    };
    for &(key, value) in tags.iter().filter(|(_, value)| !value.is_empty()) {
        while let Some(default) = defaults.next_if(|default| default.0 < key) {
            push(default);
        }
        defaults.next_if(|default| default.0 == key);
        push((key, value));
    }
    defaults.for_each(push);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::series_key;

    fn canonical(tags: &[(&str, &str)], defaults: &[(&str, &str)]) -> String {
        let mut tags: Vec<_> = tags.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        let mut key = b"c\xff".to_vec();
        write(&mut key, b"m", &mut tags, &tag_set(defaults, &[]));
        let parsed = series_key::parse(&key).unwrap();
        let mut again = Vec::new();
        let bytes: Vec<_> = parsed.tags.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        series_key::write(&mut again, b"c", b"m", &bytes);
        assert_eq!(key, again, "the form is that of point::series_key");
        parsed.tags.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn tags_are_sorted_the_last_of_equal_keys_wins_and_empty_ones_go() {
        for (tags, defaults, expected) in [
            (&[][..], &[][..], ""),
            (&[("b", "2"), ("a", "1")], &[], "a=1,b=2"),
            (&[("a", "1"), ("a", "2"), ("a", "3")], &[], "a=3"),
            (&[("b", "1"), ("a", "x"), ("b", "2"), ("a", "y")], &[], "a=y,b=2"),
            (&[("a", "1"), ("a", "")], &[], ""),
            (&[("a", ""), ("a", "1")], &[], "a=1"),
            (&[("b", "1")], &[("a", "0"), ("c", "2")], "a=0,b=1,c=2"),
            (&[("dc", "mine")], &[("dc", "theirs"), ("env", "prod")], "dc=mine,env=prod"),
            (&[("dc", "")], &[("dc", "default")], "dc=default"),
            (&[("ab", "1"), ("a", "2")], &[("aa", "3")], "a=2,aa=3,ab=1"),
        ] {
            assert_eq!(canonical(tags, defaults), expected, "{tags:?} with {defaults:?}");
        }
    }

    #[test]
    fn client_tags_go_over_static_tags() {
        let base = tag_set(&[("dc", "eu"), ("env", "prod")], &[]);
        let set = tag_set(&[("dc", "us"), ("az", "1"), ("env", "")], &base);
        let text: Vec<_> = set.iter().map(|(k, v)| [&**k, &**v].map(|b| std::str::from_utf8(b).unwrap())).collect();
        assert_eq!(text, [["az", "1"], ["dc", "us"]], "an empty value takes the static tag away");
    }
}
