//! Dates in fields (RFC 9110 §5.6.7).

use std::str;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// The days of the week, as RFC 850 spells them. The other formats take the first three letters.
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A date as IMF-fixdate: `Sun, 06 Nov 1994 08:49:37 GMT`.
type Fixdate = [u8; 29];

/// Parses a date in any of the three formats, without regard to case (RFC 9111 §4.2). `now` decides the century of a
/// year with two digits.
///
/// Returns `None` for anything else, for another time zone than GMT, and for a year before 1970. The day of the week has
/// to be one, but needn't be the right one: the rest of the date is what counts.
pub(crate) fn http_date(value: &HeaderValue, now: SystemTime) -> Option<SystemTime> {
    let text = value.as_bytes().trim_ascii();
    // Nearly all dates are spelled as RFC 9110 requires.
    if let Some(date) = parse(text).filter(|_| text.len() == size_of::<Fixdate>()) {
        return Some(date);
    }
    let fixdate = fixdate_of(text, now)?;
    // `httpdate` refuses a wrong day of the week.
    WEEKDAYS.iter().find_map(|weekday| {
        let mut fixdate = fixdate;
        fixdate[..3].copy_from_slice(&weekday.as_bytes()[..3]);
        parse(&fixdate)
    })
}

fn parse(text: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(str::from_utf8(text).ok()?).ok()
}

/// Returns a date as IMF-fixdate, without the day of the week.
fn fixdate_of(text: &[u8], now: SystemTime) -> Option<Fixdate> {
    let comma = text.iter().position(|&byte| byte == b',').unwrap_or(0);
    let (weekday, rest) = text.split_at(comma);
    let (is_weekday, day, month, year, time) = if is_like(text, b"___, __ ___ ____ __:__:__ GMT") {
        (is_short_weekday(weekday), &text[5..7], &text[8..11], &text[12..16], &text[17..25])
    } else if is_like(text, b"___ ___ __ __:__:__ ____") {
        (is_short_weekday(&text[..3]), &text[8..10], &text[4..7], &text[20..24], &text[11..19])
    } else if is_like(rest, b", __-___-__ __:__:__ GMT") {
        (is_weekday(weekday), &rest[2..4], &rest[5..8], &rest[9..11], &rest[12..20])
    } else {
        return None;
    };
    let mut fixdate = *b"   , 00     0000 00:00:00 GMT";
    fixdate[5..7].copy_from_slice(day);
    // asctime pads the day with a space.
    if comma == 0 && fixdate[5] == b' ' {
        fixdate[5] = b'0';
    }
    let month = MONTHS.into_iter().find(|name| month.eq_ignore_ascii_case(*name))?;
    fixdate[8..11].copy_from_slice(month);
    // A leap second counts as the second before it, which is never later (RFC 9111 §4.2).
    fixdate[17..25].copy_from_slice(if time == b"23:59:60" { b"23:59:59" } else { time });
    match year {
        [tens @ b'0'..=b'9', units @ b'0'..=b'9'] => {
            fixdate[14..16].copy_from_slice(&[*tens, *units]);
            set_century(&mut fixdate, now);
        }
        [_, _, _, _] => fixdate[12..16].copy_from_slice(year),
        _ => return None,
    }
    is_weekday.then_some(fixdate)
}

/// Returns `true` if a text has the letters of a pattern, in any case. `_` stands for any one byte.
fn is_like(text: &[u8], pattern: &[u8]) -> bool {
    let is_same = |(byte, like): (&u8, &u8)| *like == b'_' || byte.eq_ignore_ascii_case(like);
    text.len() == pattern.len() && text.iter().zip(pattern).all(is_same)
}

fn is_weekday(name: &[u8]) -> bool {
    WEEKDAYS.iter().any(|weekday| weekday.as_bytes().eq_ignore_ascii_case(name))
}

fn is_short_weekday(name: &[u8]) -> bool {
    WEEKDAYS.iter().any(|weekday| weekday.as_bytes()[..3].eq_ignore_ascii_case(name))
}

/// Sets the century of a year with two digits: the latest that makes the date no more than 50 years later than `now`.
fn set_century(fixdate: &mut Fixdate, now: SystemTime) {
    /// The end of 9949. `httpdate` formats no year with more than four digits.
    const LATEST: Duration = Duration::from_secs(251_825_672_799);

    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().min(LATEST);
    let now = httpdate::fmt_http_date(UNIX_EPOCH + now);
    let now = now.as_bytes();
    let latest = number(&now[12..16]) + 50;
    let two_digits = number(&fixdate[14..16]);
    let mut year = latest - (latest - two_digits) % 100;
    if year == latest && within_year(fixdate) > within_year(now) {
        year -= 100;
    }
    fixdate[12..16].copy_from_slice(format!("{year:04}").as_bytes());
}

fn number(digits: &[u8]) -> usize {
    digits.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// Returns the month, the day and the time of an IMF-fixdate, in an order that is that of time.
fn within_year(fixdate: &[u8]) -> (Option<usize>, &[u8], &[u8]) {
    let month = MONTHS.iter().position(|month| month[..] == fixdate[8..11]);
    (month, &fixdate[5..7], &fixdate[17..25])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> SystemTime {
        httpdate::parse_http_date(text).unwrap()
    }

    fn read(text: &str, now: &str) -> Option<SystemTime> {
        http_date(&HeaderValue::from_str(text).unwrap(), at(now))
    }

    const NOW: &str = "Sun, 29 Nov 2026 12:00:00 GMT";

    #[test]
    fn three_formats_are_read_without_regard_to_case() {
        let expected = Some(at("Sun, 06 Nov 1994 08:49:37 GMT"));
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "SUN, 06 nov 1994 08:49:37 gmt",
            "sun, 06 NOV 1994 08:49:37 Gmt",
            "\tSun, 06 Nov 1994 08:49:37 GMT ",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "SUNDAY, 06-NOV-94 08:49:37 gmt",
            "Sun Nov  6 08:49:37 1994",
            "Sun Nov 06 08:49:37 1994",
            "sUN nOV  6 08:49:37 1994",
            // Of the day of the week only the spelling counts.
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Tuesday, 06-Nov-94 08:49:37 GMT",
            "Wed Nov  6 08:49:37 1994",
        ] {
            assert_eq!(read(text, NOW), expected, "{text}");
        }
        for text in [
            "",
            "0",
            ",",
            "yesterday",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 1994 08:49:37 +00",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov  1994 08:49:37 GMT",
            "Sun,  6 Nov 1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sunday,  6-Nov-94 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-9x 08:49:37 GMT",
            "Som, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nav 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 2026 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:49:60 GMT",
            "Sun, 06 Nov 1969 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun Nov  6 08:49:37 1994 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(read(text, NOW), None, "{text}");
        }
        let leap = read("Sat, 31 Dec 2016 23:59:60 GMT", NOW);
        assert_eq!(leap, Some(at("Sat, 31 Dec 2016 23:59:59 GMT")));
    }

    #[test]
    fn two_digits_of_a_year_are_no_more_than_fifty_years_ahead() {
        for (text, now, expected) in [
            ("Sunday, 29-Nov-26 12:00:00 GMT", NOW, "Sun, 29 Nov 2026 12:00:00 GMT"),
            ("Tuesday, 01-Jan-30 00:00:00 GMT", NOW, "Tue, 01 Jan 2030 00:00:00 GMT"),
            ("Wednesday, 01-Jan-75 00:00:00 GMT", NOW, "Tue, 01 Jan 2075 00:00:00 GMT"),
            ("Sunday, 29-Nov-76 12:00:00 GMT", NOW, "Sun, 29 Nov 2076 12:00:00 GMT"),
            ("Sunday, 29-Nov-76 12:00:01 GMT", NOW, "Mon, 29 Nov 1976 12:00:01 GMT"),
            ("Sunday, 01-Dec-76 00:00:00 GMT", NOW, "Wed, 01 Dec 1976 00:00:00 GMT"),
            ("Saturday, 01-Jan-77 00:00:00 GMT", NOW, "Sat, 01 Jan 1977 00:00:00 GMT"),
            ("Friday, 31-Dec-99 23:59:59 GMT", NOW, "Fri, 31 Dec 1999 23:59:59 GMT"),
            // Near the end of a century.
            (
                "Friday, 01-Jan-00 00:00:00 GMT",
                "Thu, 31 Dec 2099 23:59:59 GMT",
                "Fri, 01 Jan 2100 00:00:00 GMT",
            ),
            (
                "Sunday, 06-Nov-94 08:49:37 GMT",
                "Sun, 06 Nov 1994 08:49:37 GMT",
                "Sun, 06 Nov 1994 08:49:37 GMT",
            ),
        ] {
            assert_eq!(read(text, now), Some(at(expected)), "{text} at {now}");
        }
        // Clocks may be anywhere.
        let date = HeaderValue::from_static("Sunday, 06-Nov-94 08:49:37 GMT");
        let far = UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 1000);
        assert!(http_date(&date, far).is_some());
        let early = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(http_date(&date, early), Some(at("Sun, 06 Nov 1994 08:49:37 GMT")));
    }

    proptest! {
        #[test]
        fn what_is_formatted_is_read(seconds in 0u64..253_402_300_800) {
            let date = UNIX_EPOCH + Duration::from_secs(seconds);
            let text = httpdate::fmt_http_date(date);
            prop_assert_eq!(read(&text, NOW), Some(date));
            prop_assert_eq!(read(&text.to_ascii_uppercase(), NOW), Some(date));
            prop_assert_eq!(read(&text.to_ascii_lowercase(), NOW), Some(date));
        }

        #[test]
        fn garbage_is_survived(text in "[A-Za-z0-9 ,:-]{0,34}", seconds in any::<u64>()) {
            let now = UNIX_EPOCH.checked_add(Duration::from_secs(seconds >> 20)).unwrap_or(UNIX_EPOCH);
            let _ = http_date(&HeaderValue::from_str(&text).unwrap(), now);
        }

        #[test]
        fn look_alikes_are_survived(
            weekday in "(Sunday|Sun|sUnday|S)", day in "[0-9 ]{2}", month in "(Nov|Feb|xxx)", year in "[0-9x]{2,4}",
            time in "[0-9:]{8}", seconds in 0u64..253_402_300_800,
        ) {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            for text in [
                format!("{weekday}, {day} {month} {year} {time} GMT"),
                format!("{weekday}, {day}-{month}-{year} {time} GMT"),
                format!("{weekday} {month} {day} {time} {year}"),
            ] {
                let _ = http_date(&HeaderValue::from_str(&text).unwrap(), now);
            }
        }
    }
}
