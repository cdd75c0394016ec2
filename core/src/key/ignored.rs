//! Query parameters that are no part of a key.

/// The parameters with which advertisers, social networks and mail services mark links, to track visitors. Handlers rarely read
/// them, and each visitor has other values.
///
/// For [`LarderBuilder::ignore_query_params`](crate::LarderBuilder::ignore_query_params) and the option of the same name on routes.
#[rustfmt::skip]
pub const TRACKING_PARAMS: [&str; 28] = [
    "utm_*", "gclid", "gclsrc", "dclid", "gbraid", "wbraid", "gad_source", "gad_campaignid", "srsltid", "_gl", "_ga",
    "fbclid", "igshid", "igsh", "msclkid", "ttclid", "twclid", "li_fat_id", "yclid", "ysclid", "epik", "rdt_cid",
    "mc_cid", "mc_eid", "mkt_tok", "_hsenc", "_hsmi", "vero_id",
];

/// Returns `true` if a parameter with this decoded name is ignored. A `*` in a pattern stands for any characters.
///
/// A pair with a `;` is never ignored. Some origins split a query there too, and would find another parameter in it.
pub(crate) fn is_ignored(patterns: &[String], name: &[u8], value: &str) -> bool {
    if patterns.is_empty() || name.contains(&b';') || has_semicolon(value) {
        return false;
    }
    patterns.iter().any(|pattern| match pattern.split_once('*') {
        None => pattern.as_bytes() == name,
        Some((start, end)) => {
            name.len() >= start.len() + end.len()
                && name.starts_with(start.as_bytes())
                && name.ends_with(end.as_bytes())
        }
    })
}

/// Returns `true` if a text has a `;`, as it is or escaped.
fn has_semicolon(text: &str) -> bool {
    text.contains(';') || text.as_bytes().windows(3).any(|bytes| bytes.eq_ignore_ascii_case(b"%3b"))
}

/// Returns the error about a pattern that can't be used, or `None` if it can.
#[cfg(feature = "runtime")]
pub(crate) fn pattern_error(pattern: &str) -> Option<String> {
    if pattern.is_empty() {
        Some("the name of a query parameter to ignore is empty".to_owned())
    } else if pattern.matches('*').count() > 1 {
        Some(format!("{pattern:?} has more than one `*`, and a query parameter to ignore may have one"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("gclid", "gclid", true),
            ("gclid", "gclid2", false),
            ("gclid", "GCLID", false),
            ("utm_*", "utm_source", true),
            ("utm_*", "utm_", true),
            ("utm_*", "utm", false),
            ("*_id", "vero_id", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*c", "abc", true),
            ("*", "anything", true),
        ] {
            assert_eq!(is_ignored(&[pattern.to_owned()], name.as_bytes(), "x"), expected, "{pattern} {name}");
        }
        assert!(!is_ignored(&[], b"utm_source", "x"));
        for (name, value) in [("utm_source", "x;id=7"), ("utm_source", "x%3Bid=7"), ("utm_source;id", "7")] {
            assert!(!is_ignored(&["utm_*".to_owned()], name.as_bytes(), value), "{name}={value}");
        }
    }
}
