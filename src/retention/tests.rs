use proptest::prelude::*;

use super::*;

/// One line per snapshot: its time, `p` if protected, `u` if unfinished; then what is expected: `keep`, `partial`,
/// `protected` or `-` for removal.
fn table(rules: RetentionRules, offset: impl Fn(BackupTime) -> i32, lines: &str) {
    let mut items = Vec::new();
    let mut expected = Vec::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let mut item = RetentionItem::new(words.next().unwrap().parse().unwrap());
        for word in words {
            match word {
                "p" => item.protected = true,
                "u" => item.finished = false,
                "keep" => expected.push(Decision::Keep),
                "partial" => expected.push(Decision::KeepPartial),
                "protected" => expected.push(Decision::Protected),
                "-" => expected.push(Decision::Remove),
                _ => panic!("{word}"),
            }
        }
        items.push(item);
    }
    assert_eq!(retain(&items, &rules, &offset), expected);
    items.reverse();
    expected.reverse();
    assert_eq!(retain(&items, &rules, &offset), expected, "in reverse order");
}

const RULES: RetentionRules =
    RetentionRules { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };

fn utc(_: BackupTime) -> i32 {
    0
}

#[test]
fn without_rules_everything_is_kept() {
    for rules in [RULES, RULES.keep_last(0).keep_daily(0), RetentionRules::default()] {
        assert!(rules.keep_everything());
        table(
            rules,
            utc,
            "2025-07-14T00:00:00Z keep
             2025-07-15T00:00:00Z u keep
             2025-07-16T00:00:00Z p protected
             2025-07-17T00:00:00Z u keep",
        );
    }
    assert!(!RULES.keep_yearly(1).keep_everything());
    assert_eq!(retain(&[], &RULES.keep_last(1), utc), []);
}

#[test]
fn the_last_ones_are_kept_and_protected_ones_are_not_counted() {
    table(
        RULES.keep_last(2),
        utc,
        "2025-07-16T10:00:00Z keep
         2025-07-16T09:00:00Z p protected
         2025-07-16T08:00:00Z keep
         2025-07-16T07:00:00Z -
         2025-07-16T06:00:00Z p protected",
    );
    table(RULES.keep_last(u64::MAX).keep_daily(u64::MAX), utc, "2025-07-16T10:00:00Z keep");
}

#[test]
fn an_unfinished_snapshot_is_kept_only_if_it_is_the_newest() {
    table(
        RULES.keep_last(1),
        utc,
        "2025-07-16T10:00:00Z u partial
         2025-07-16T09:00:00Z u -
         2025-07-16T08:00:00Z keep
         2025-07-16T07:00:00Z u p protected",
    );
    table(
        RULES.keep_last(9),
        utc,
        "2025-07-16T10:00:00Z p protected
         2025-07-16T09:00:00Z u -
         2025-07-16T08:00:00Z keep",
    );
    table(RULES.keep_last(9), utc, "2025-07-16T10:00:00Z u p protected\n2025-07-16T09:00:00Z u -");
}

#[test]
fn the_newest_of_every_period_is_kept() {
    table(
        RULES.keep_hourly(2),
        utc,
        "2025-07-16T10:59:59Z keep
         2025-07-16T10:00:00Z -
         2025-07-16T09:59:59Z keep
         2025-07-16T09:00:00Z -
         2025-07-16T08:59:59Z -",
    );
    table(
        RULES.keep_daily(2),
        utc,
        "2025-07-16T10:00:00Z keep
         2025-07-16T00:00:00Z -
         2025-07-14T23:59:59Z keep
         2025-07-13T00:00:00Z -",
    );
    table(
        RULES.keep_monthly(3),
        utc,
        "2025-03-31T00:00:00Z keep
         2025-03-01T00:00:00Z -
         2025-01-01T00:00:00Z keep
         2024-03-31T00:00:00Z keep
         2024-01-01T00:00:00Z -",
    );
    table(
        RULES.keep_yearly(1),
        utc,
        "2025-12-31T23:59:59Z keep
         2025-01-01T00:00:00Z -
         2024-12-31T23:59:59Z -",
    );
}

#[test]
fn later_rules_skip_covered_periods_without_counting_them() {
    table(
        RULES.keep_last(2).keep_daily(2).keep_monthly(1),
        utc,
        // Last: 16th 20:00 and 16:00. Daily: the 16th is covered, so 15th and 14th, and the 15th 08:00 goes. Monthly: July
        // is covered; the first of June that is undecided is kept.
        "2025-07-16T20:00:00Z keep
         2025-07-16T16:00:00Z keep
         2025-07-16T12:00:00Z -
         2025-07-15T20:00:00Z keep
         2025-07-15T08:00:00Z -
         2025-07-14T20:00:00Z keep
         2025-07-13T20:00:00Z -
         2025-06-30T20:00:00Z keep
         2025-06-29T20:00:00Z -
         2025-05-31T20:00:00Z -",
    );
}

#[test]
fn a_snapshot_removed_by_an_earlier_rule_is_not_kept_by_a_later_one() {
    table(
        RULES.keep_daily(1).keep_hourly(1),
        utc,
        // Hourly goes first: 10:30 is kept and 10:10 removed. Daily: the 16th is covered, the 15th is free.
        "2025-07-16T10:30:00Z keep
         2025-07-16T10:10:00Z -
         2025-07-16T09:00:00Z -
         2025-07-15T09:00:00Z keep",
    );
    table(
        RULES.keep_weekly(2).keep_yearly(1),
        utc,
        // 2024-12-30 to 2025-01-05 is one ISO week. Its second snapshot is removed by the weekly rule, although it is the
        // newest of 2024; the yearly rule then takes the next one of 2024 that is undecided.
        "2025-01-02T00:00:00Z keep
         2024-12-31T00:00:00Z -
         2024-12-28T00:00:00Z keep
         2024-12-20T00:00:00Z -
         2023-06-01T00:00:00Z keep",
    );
}

#[test]
fn weeks_are_those_of_iso_8601() {
    table(
        RULES.keep_weekly(9),
        utc,
        // Week 1 of 2026 begins on Monday 2025-12-29; week 53 of 2020 ends on Sunday 2021-01-03; 2023-01-01 is the Sunday
        // of week 52 of 2022; week 1 of 2020 and week 1 of 2019 have the same number but not the same year.
        "2026-01-04T23:59:59Z keep
         2025-12-29T00:00:00Z -
         2025-12-28T23:59:59Z keep
         2023-01-02T00:00:00Z keep
         2023-01-01T23:59:59Z keep
         2022-12-26T00:00:00Z -
         2021-01-04T00:00:00Z keep
         2021-01-03T00:00:00Z keep
         2020-12-28T00:00:00Z -
         2020-01-01T00:00:00Z keep
         2019-01-01T00:00:00Z keep
         2018-12-31T00:00:00Z -
         2018-12-30T00:00:00Z keep",
    );
}

#[test]
fn periods_begin_in_local_time() {
    let lines = |offset, second| {
        let lines = format!("2025-01-01T01:00:00Z keep\n2024-12-31T22:30:00Z {second}");
        for rules in [RULES.keep_daily(2), RULES.keep_monthly(2), RULES.keep_yearly(2)] {
            table(rules, |_| offset, &lines);
        }
    };
    lines(0, "keep");
    lines(2 * 3600, "-");
    lines(-2 * 3600, "-");
    // The clock goes back from 03:00 to 02:00 at 01:00 UTC: both times are 02:30, in the same hour of the same day.
    let change: BackupTime = "2025-10-26T01:00:00Z".parse().unwrap();
    let berlin = |time| if time < change { 7200 } else { 3600 };
    table(RULES.keep_hourly(2), berlin, "2025-10-26T01:30:00Z keep\n2025-10-26T00:30:00Z -");
}

#[test]
fn the_ends_of_the_calendar_are_handled() {
    for offset in [0, i32::MAX, i32::MIN, 86_400] {
        let items = [BackupTime::MIN, BackupTime::MAX].map(RetentionItem::new);
        let rules = RULES.keep_hourly(2).keep_weekly(2).keep_yearly(2);
        assert_eq!(retain(&items, &rules, |_| offset), [Decision::Keep; 2]);
    }
}

fn any_items() -> impl Strategy<Value = Vec<RetentionItem>> {
    // Two years in steps of at least ten minutes.
    let item = (0..105_120_i64, any::<[bool; 6]>());
    prop::collection::btree_map(0..105_120_i64, item, 0..60).prop_map(|items| {
        let item = |(step, (_, bits)): (i64, (i64, [bool; 6]))| RetentionItem {
            time: BackupTime::from_epoch(1_700_000_000 + step * 600).unwrap(),
            finished: bits[0] || bits[1] || bits[2],
            protected: bits[3] && bits[4] && bits[5],
        };
        items.into_iter().map(item).collect()
    })
}

proptest! {
    #[test]
    fn one_rule_keeps_the_newest_of_its_newest_periods(items in any_items(), count in 1..12_u64, which in 0..6_usize) {
        let (rules, period) = [
            (RULES.keep_last(count), Period::Time),
            (RULES.keep_hourly(count), Period::Hour),
            (RULES.keep_daily(count), Period::Day),
            (RULES.keep_weekly(count), Period::Week),
            (RULES.keep_monthly(count), Period::Month),
            (RULES.keep_yearly(count), Period::Year),
        ][which];
        let offset = |_| 19_800;
        let mut keys = BTreeSet::new();
        let newest = items.last().map(|item| item.time);
        let mut expected = Vec::new();
        for item in items.iter().rev() {
            expected.push(match item {
                RetentionItem { protected: true, .. } => Decision::Protected,
                RetentionItem { finished: false, time, .. } if Some(*time) == newest => Decision::KeepPartial,
                RetentionItem { finished: false, .. } => Decision::Remove,
                _ if keys.insert(period.key(item.time, offset)) && keys.len() as u64 <= count => Decision::Keep,
                _ => Decision::Remove,
            });
        }
        expected.reverse();
        prop_assert_eq!(retain(&items, &rules, offset), expected);
    }

    #[test]
    fn rules_together_keep_no_more_than_their_numbers(items in any_items(), counts: [u8; 6]) {
        let [last, hourly, daily, weekly, monthly, yearly] = counts.map(|count| u64::from(count % 4));
        let rules = RULES.keep_last(last).keep_hourly(hourly).keep_daily(daily);
        let rules = rules.keep_weekly(weekly).keep_monthly(monthly).keep_yearly(yearly);
        prop_assume!(!rules.keep_everything());
        let decisions = retain(&items, &rules, utc);
        let kept = decisions.iter().filter(|it| **it == Decision::Keep).count() as u64;
        prop_assert!(kept <= last + hourly + daily + weekly + monthly + yearly);
        // Each rule alone keeps its newest period's newest snapshot, and so does every set of rules.
        let newest = items.iter().rposition(|item| item.finished && !item.protected);
        prop_assert!(newest.is_none_or(|at| decisions[at] == Decision::Keep));
        for (item, decision) in items.iter().zip(&decisions) {
            prop_assert_eq!(item.protected, *decision == Decision::Protected);
        }
    }
}
