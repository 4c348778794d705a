//! What can be wrong with a line or an element: a reason for the counters, and words for the client. The words are
//! made only for the few refusals that are reported, so a flood of bad lines allocates nothing.

use std::fmt;

use crate::point::Reason;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    MissingMeasurement,
    MissingFields,
    MissingFieldKey,
    MissingFieldValue,
    MissingTagKey,
    MissingTagValue,
    TagEquals,
    UnbalancedQuotes,
    AfterString,
    AfterTimestamp,
    BadNumber,
    BadInteger,
    BadUnsigned,
    BadValue,
    NonFinite,
    BadTimestamp,
    TooLong { what: &'static str, bytes_max: u32 },
    TooManyTags { tags_max: u16 },
    NotText { what: &'static str },
    TooManyPoints { points_max: u32 },
    // JSON only
    NotAnObject,
    NoName,
    NoValue,
    ValueNoNumber,
    FieldsNoObject,
    NoFields,
    FieldType,
    TagsNoObject,
    TagType,
}

impl Fault {
    pub(super) fn reason(self) -> Reason {
        match self {
            Fault::MissingMeasurement | Fault::NoName => Reason::MissingName,
            Fault::MissingFields | Fault::MissingFieldValue | Fault::NoValue | Fault::NoFields => Reason::MissingValue,
            Fault::MissingTagKey | Fault::MissingTagValue | Fault::TagEquals => Reason::InvalidTag,
            Fault::TagsNoObject | Fault::TagType => Reason::InvalidTag,
            Fault::MissingFieldKey | Fault::UnbalancedQuotes | Fault::AfterString | Fault::AfterTimestamp => {
                Reason::Malformed
            }
            Fault::NotAnObject | Fault::FieldsNoObject => Reason::Malformed,
            Fault::BadNumber | Fault::BadInteger | Fault::BadUnsigned | Fault::BadValue => Reason::InvalidValue,
            Fault::ValueNoNumber | Fault::FieldType => Reason::InvalidValue,
            Fault::NonFinite => Reason::NonFinite,
            Fault::BadTimestamp => Reason::InvalidTimestamp,
            Fault::TooLong { .. } => Reason::TooLong,
            Fault::TooManyTags { .. } => Reason::TooManyTags,
            Fault::NotText { .. } => Reason::InvalidText,
            Fault::TooManyPoints { .. } => Reason::TooManyPoints,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::MissingMeasurement => "missing measurement",
            Fault::MissingFields => "missing fields",
            Fault::MissingFieldKey => "missing field key",
            Fault::MissingFieldValue => "missing field value",
            Fault::MissingTagKey => "missing tag key",
            Fault::MissingTagValue => "missing tag value",
            Fault::TagEquals => "invalid tag format, an equals sign in a tag needs a backslash",
            Fault::UnbalancedQuotes => "unbalanced quotes",
            Fault::AfterString => "only a comma or a space may follow a string",
            Fault::AfterTimestamp => "only the end of the line may follow the timestamp",
            Fault::BadNumber => "invalid number",
            Fault::BadInteger => "invalid integer, the range is that of 64 bits with a sign",
            Fault::BadUnsigned => "invalid unsigned integer, the range is that of 64 bits without a sign",
            Fault::BadValue => "invalid field value, it must be a number, a boolean or a quoted string",
            Fault::NonFinite => "the value must be finite, and NaN, infinities and overflows are not",
            Fault::BadTimestamp => "invalid timestamp, it must be a number between the years 1677 and 2262",
            Fault::TooLong { what, bytes_max } => {
                return write!(f, "{what} must be at most {bytes_max} bytes long");
            }
            Fault::TooManyTags { tags_max } => return write!(f, "a point may have at most {tags_max} tags"),
            Fault::NotText { what } => {
                return write!(f, "{what} must be UTF-8 without control characters");
            }
            Fault::TooManyPoints { points_max } => {
                return write!(f, "a request may hold at most {points_max} points");
            }
            Fault::NotAnObject => "a metric must be an object",
            Fault::NoName => "`name` must be a string that is not empty",
            Fault::NoValue => "a metric needs a number as `value`, or an object as `fields`",
            Fault::ValueNoNumber => "`value` must be a number",
            Fault::FieldsNoObject => "`fields` must be an object",
            Fault::NoFields => "`fields` must not be empty",
            Fault::FieldType => "a field must be a number, a boolean or a string",
            Fault::TagsNoObject => "`tags` must be an object",
            Fault::TagType => "a tag must be a string",
        })
    }
}
