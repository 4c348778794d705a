//! The `precision` parameter of the line protocol routes: which names each version knows, and its default.

use super::route::Route;

/// Unit of the timestamps of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// By magnitude, v3's default: below 5e9 seconds, below 5e12 milliseconds, below 5e15 microseconds, else nanoseconds
    Auto,
    Nanosecond,
    Microsecond,
    Millisecond,
    Second,
    Minute,
    Hour,
}

/// `None` is an absent parameter; an empty value counts as one. The error is the message of a 400.
pub fn precision(route: Route, parameter: Option<&str>) -> Result<Precision, &'static str> {
    use Precision::*;
    let name = parameter.unwrap_or("");
    match route {
        Route::V3Write => match name {
            "" | "auto" => Ok(Auto),
            "nanosecond" | "ns" | "n" => Ok(Nanosecond),
            "microsecond" | "us" | "u" => Ok(Microsecond),
            "millisecond" | "ms" => Ok(Millisecond),
            "second" | "s" => Ok(Second),
            _ => Err("invalid precision (use auto, nanosecond, microsecond, millisecond or second)"),
        },
        Route::V2Write => match name {
            "" | "ns" | "n" => Ok(Nanosecond),
            "us" | "u" => Ok(Microsecond),
            "ms" => Ok(Millisecond),
            "s" => Ok(Second),
            _ => Err("invalid precision (use ns, us, ms or s)"),
        },
        _ => match name {
            "" | "n" | "ns" => Ok(Nanosecond),
            "u" => Ok(Microsecond),
            "ms" => Ok(Millisecond),
            "s" => Ok(Second),
            "m" => Ok(Minute),
            "h" => Ok(Hour),
            _ => Err("invalid precision (use n, ns, u, ms, s, m or h)"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_knows_its_own_names() {
        for (route, name, unit) in [
            (Route::V1Write, None, Ok(Precision::Nanosecond)),
            (Route::V1Write, Some(""), Ok(Precision::Nanosecond)),
            (Route::V1Write, Some("u"), Ok(Precision::Microsecond)),
            (Route::V1Write, Some("h"), Ok(Precision::Hour)),
            (Route::V1Write, Some("second"), Err(())),
            (Route::V2Write, Some("us"), Ok(Precision::Microsecond)),
            (Route::V2Write, Some("h"), Err(())),
            (Route::V3Write, None, Ok(Precision::Auto)),
            (Route::V3Write, Some("millisecond"), Ok(Precision::Millisecond)),
            (Route::V3Write, Some("ms"), Ok(Precision::Millisecond)),
            (Route::V3Write, Some("S"), Err(())),
        ] {
            assert_eq!(precision(route, name).map_err(|_| ()), unit, "{route:?} {name:?}");
        }
    }
}
