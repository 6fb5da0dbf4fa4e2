//! Times as AWS writes them: `2026-11-21T20:15:00Z`, perhaps with fractions of a second.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `None` for what is no such time. Only UTC is ever written.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || year < 1970 {
        return None;
    }
    // A civil date to days since 1970, after Howard Hinnant.
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year / 400;
    let year_of_era = shifted_year % 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(UNIX_EPOCH + Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second))
}

/// The other way, to the second.
pub(super) fn write(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_both_ways() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-11-22T00:54:28Z", 1_795_308_868),
            ("2100-03-01T12:00:00Z", 4_107_585_600),
        ] {
            let at = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(parse(text), Some(at), "{text}");
            assert_eq!(write(at), text);
        }
        assert_eq!(parse("2026-11-22T00:54:28.123+00:00"), parse("2026-11-22T00:54:28Z"));
        for bad in ["", "soon", "2026-13-01T00:00:00Z", "2026-11-22"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
