//! A crontab line as the `cron` crate reads it. That one wants seconds, numbers the days of the week from 1 = Sunday, and joins the day of
//! the month and the day of the week by AND.

use anyhow::{anyhow, bail};
use chrono::{DateTime, Utc};

use crate::support::hint::with_hint;

const FORM: &str =
    "write it as crontab does: minute, hour, day of month, month, day of week; seconds may come before, a year behind";
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// Sunday as the last day of the week.
const SUNDAY_AGAIN: usize = 7;
const SHORTHANDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// Which seconds of the calendar match, whatever the clocks do.
#[derive(Debug, Clone)]
pub(super) struct Crontab {
    /// Any of them: two where days of the month and of the week are both restricted, for crontab runs on either.
    any: Vec<cron::Schedule>,
    /// Whether the hour is open (`*`, `*/2`): such lines follow the time that goes by rather than the clock on the wall.
    pub every_hour: bool,
}

impl Crontab {
    pub(super) fn parse(text: &str) -> anyhow::Result<Crontab> {
        Crontab::read(text).map_err(|e| with_hint(e.context(format!("`{text}` is no schedule")), FORM))
    }

    fn read(text: &str) -> anyhow::Result<Crontab> {
        let mut line = text.trim();
        if line.starts_with('@') {
            let meant = SHORTHANDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(line));
            line = meant.ok_or_else(|| anyhow!("there is no such word"))?.1;
        }
        let mut fields: Vec<&str> = line.split_whitespace().collect();
        for field in &fields {
            let at_edges = |c: char| c.is_ascii_alphanumeric() || "*?".contains(c);
            // The crate would read on in the next field.
            if !field.starts_with(at_edges) || !field.ends_with(at_edges) {
                bail!("`{field}` is no field");
            }
        }
        if fields.len() == 5 {
            fields.insert(0, "0");
        }
        let (seconds, minutes, hours, day, month, weekday, year) = match fields[..] {
            [s, m, h, d, mo, w] => (s, m, h, d, mo, w, "*"),
            [s, m, h, d, mo, w, y] => (s, m, h, d, mo, w, y),
            _ => bail!("it has {} fields", fields.len()),
        };
        let weekday_numbers = weekdays(weekday)?;
        let one = |day: &str, weekday: &str| {
            let line = format!("{seconds} {minutes} {hours} {day} {month} {weekday} {year}");
            // Its own text is of several lines and points into the translation.
            line.parse::<cron::Schedule>()
                .map_err(|_| anyhow!("a field holds what it cannot hold"))
        };
        let is_open = |field: &str| field.starts_with(['*', '?']);
        let any = match is_open(day) || is_open(weekday) {
            true => vec![one(day, &weekday_numbers)?],
            false => vec![one(day, "*")?, one("*", &weekday_numbers)?],
        };
        let crontab = Crontab {
            any,
            every_hour: is_open(hours),
        };
        if crontab.after(0).is_none() {
            bail!("no day of any year is such a date");
        }
        Ok(crontab)
    }

    /// The first second that matches behind this one; both counted since 1970-01-01 00:00:00 of the calendar. None where none is left.
    pub(super) fn after(&self, second: i64) -> Option<i64> {
        let from = DateTime::<Utc>::from_timestamp(second, 0)?;
        self.any
            .iter()
            .filter_map(|s| s.after(&from).next())
            .map(|found| found.timestamp())
            .min()
    }
}

/// Crontab's days of the week (0 to 7, names, ranges, steps, lists) as the crate's numbers.
fn weekdays(field: &str) -> anyhow::Result<String> {
    if ["*", "?"].contains(&field) {
        return Ok("*".to_owned());
    }
    let mut wanted = [false; DAYS.len()];
    for item in field.split(',') {
        let wrong = || anyhow!("`{item}` is no day of the week: they are 0 to 7 or sun to sat");
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, step.parse().ok().filter(|s| *s > 0).ok_or_else(wrong)?),
            None => (item, 1),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (0, DAYS.len() - 1),
            Some((first, last)) => {
                let (first, last) = (weekday(first).ok_or_else(wrong)?, weekday(last).ok_or_else(wrong)?);
                // A week may end with its Sunday.
                (first, if last == 0 && first > 0 { SUNDAY_AGAIN } else { last })
            }
            None => {
                let first = weekday(range).ok_or_else(wrong)?;
                (first, if item.contains('/') { DAYS.len() - 1 } else { first })
            }
        };
        if first > last {
            return Err(wrong());
        }
        (first..=last).step_by(step).for_each(|day| wanted[day % DAYS.len()] = true);
    }
    let numbers = (1..=DAYS.len()).filter(|n| wanted[n - 1]).map(|n| n.to_string());
    Ok(numbers.collect::<Vec<_>>().join(","))
}

fn weekday(text: &str) -> Option<usize> {
    let named = DAYS.iter().position(|name| name.eq_ignore_ascii_case(text));
    named.or_else(|| text.parse().ok().filter(|n| *n <= SUNDAY_AGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weekdays_are_crontabs() {
        for (field, numbers) in [
            ("0", "1"),
            ("7", "1"),
            ("1", "2"),
            ("mon", "2"),
            ("MON-fri", "2,3,4,5,6"),
            ("5-7", "1,6,7"),
            ("fri-sun", "1,6,7"),
            ("0-7", "1,2,3,4,5,6,7"),
            ("*/2", "1,3,5,7"),
            ("1-5/2,sat", "2,4,6,7"),
            ("*", "*"),
        ] {
            assert_eq!(weekdays(field).unwrap(), numbers, "{field}");
        }
        for wrong in ["8", "5-1", "mon-", "1/0", "day", "", "1,,2", "-1", "1-2-3"] {
            assert!(weekdays(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_a_reason() {
        for (text, reason) in [
            ("0 0 30 2 *", "no day of any year is such a date"),
            ("0 0 31 4,6,9,11 ?", "no day of any year is such a date"),
            ("0 0 29 2 * * 2027", "a field holds what it cannot hold"),
            ("0 0 0 29 2 * 2027", "no day of any year is such a date"),
            ("60 * * * *", "a field holds what it cannot hold"),
            ("* * * *", "it has 4 fields"),
            ("* * * * * * * *", "it has 8 fields"),
            ("", "it has 0 fields"),
            ("* * * * 8", "`8` is no day of the week: they are 0 to 7 or sun to sat"),
            ("* * -5 * * *", "`-5` is no field"),
            ("5, 7 * * * *", "`5,` is no field"),
            ("@reboot", "there is no such word"),
            ("*/0 * * * *", "a field holds what it cannot hold"),
        ] {
            let e = Crontab::parse(text).unwrap_err();
            assert_eq!(e.root_cause().to_string(), reason, "{text}: {e:#}");
            assert!(format!("{e:#}").contains("is no schedule"), "{e:#}");
        }
        // Impossible on the thirtieth, but there are Mondays.
        assert!(Crontab::parse("0 0 30 2 1").is_ok());
    }
}
