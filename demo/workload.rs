//! What the applications do. Each writer owns its own range of ids, so that no two transactions touch the same row and
//! the truth does not depend on who comes first.

use std::collections::VecDeque;

use jiff::{Timestamp, tz::TimeZone};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::schema::{ACCOUNTS, EVENTS, ORDER_LINES, ORDERS, Step, TRANSFERS, delete, insert, update};
use crate::truth::Row;

/// Every writer's ids lie between its number times this and the next one's.
const IDS_PER_WRITER: u64 = 1_000_000_000;
const NAMES: [&str; 8] = ["Ada", "Björn", "Chloë", "Dmitrij", "O'Brien", "Ümit", "李娜", "Zoë 🚲"];
const ARTICLES: [&str; 5] = ["bicycle bell", "inner tube 28\"", "saddle", "chain 9-speed", "café mug"];

/// One application: an endless source of transactions, each of one or more statements.
pub trait Application: Send {
    fn name(&self) -> &'static str;
    /// What it begins with.
    fn opening(&mut self) -> Vec<Step>;
    /// Its next transaction. Never empty.
    fn next(&mut self) -> Vec<Step>;
}

/// Two banks, two shops, one journal. Their numbers seed them too: every demo writes alike, but for the times.
pub fn applications() -> Vec<Box<dyn Application>> {
    vec![
        Box::new(Bank::new(Source::new(1))),
        Box::new(Bank::new(Source::new(2))),
        Box::new(Shop::new(Source::new(3))),
        Box::new(Shop::new(Source::new(4))),
        Box::new(Journal::new(Source::new(5))),
    ]
}

/// Ids and chance.
struct Source {
    next_id: u64,
    rng: StdRng,
}

impl Source {
    fn new(writer: u64) -> Source {
        Source {
            next_id: writer * IDS_PER_WRITER,
            rng: StdRng::seed_from_u64(writer),
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.choose(&mut self.rng).expect("a list that is not empty")
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.rng.random_ratio(chance, 100)
    }
}

/// A value that is not NULL.
fn value(text: impl ToString) -> Option<String> {
    Some(text.to_string())
}

/// Cents as DECIMAL(12,2) prints them. No amount here is negative.
fn money(cents: u64) -> Option<String> {
    Some(format!("{}.{:02}", cents / 100, cents % 100))
}

/// As DATETIME(6) prints it.
fn now() -> Option<String> {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    Some(now.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string())
}

/// Opens accounts and moves money between them.
struct Bank {
    source: Source,
    accounts: Vec<Account>,
}

struct Account {
    id: u64,
    owner: &'static str,
    cents: u64,
    version: u32,
}

impl Account {
    fn row(&self) -> Row {
        vec![value(self.owner), money(self.cents), value(self.version)]
    }

    fn book(&mut self, sign: char, amount: u64) -> Step {
        self.cents = if sign == '+' {
            self.cents + amount
        } else {
            self.cents - amount
        };
        self.version += 1;
        let amount = money(amount).unwrap_or_default();
        let set = format!("balance = balance {sign} {amount}, version = version + 1");
        update(ACCOUNTS, self.id, &set, self.row())
    }
}

impl Bank {
    const ACCOUNTS_AT_FIRST: usize = 500;
    const FIRST_CENTS: u64 = 100_000;

    fn new(source: Source) -> Bank {
        Bank {
            source,
            accounts: Vec::new(),
        }
    }

    fn open(&mut self) -> Step {
        let account = Account {
            id: self.source.id(),
            owner: self.source.pick(&NAMES),
            cents: Bank::FIRST_CENTS,
            version: 1,
        };
        let step = insert(ACCOUNTS, account.id, account.row());
        self.accounts.push(account);
        step
    }
}

impl Application for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn opening(&mut self) -> Vec<Step> {
        (0..Bank::ACCOUNTS_AT_FIRST).map(|_| self.open()).collect()
    }

    fn next(&mut self) -> Vec<Step> {
        if self.source.percent(10) {
            return vec![self.open()];
        }
        let count = self.accounts.len();
        let from = self.source.rng.random_range(0..count);
        let to = (from + self.source.rng.random_range(1..count)) % count;
        let amount = self.source.rng.random_range(0..=self.accounts[from].cents / 2);
        let row = vec![
            value(self.accounts[from].id),
            value(self.accounts[to].id),
            money(amount),
            now(),
        ];
        vec![
            self.accounts[from].book('-', amount),
            self.accounts[to].book('+', amount),
            insert(TRANSFERS, self.source.id(), row),
        ]
    }
}

/// Takes orders, moves them on, and forgets those that are cancelled.
struct Shop {
    source: Source,
    open: Vec<Order>,
}

struct Order {
    id: u64,
    customer: &'static str,
    status: &'static str,
    cents: u64,
    placed_at: Option<String>,
    lines: Vec<u64>,
}

impl Order {
    fn row(&self) -> Row {
        vec![
            value(self.customer),
            value(self.status),
            money(self.cents),
            self.placed_at.clone(),
        ]
    }
}

impl Shop {
    const ORDERS_AT_FIRST: usize = 300;
    const LINES_MAX: usize = 4;

    fn new(source: Source) -> Shop {
        Shop {
            source,
            open: Vec::new(),
        }
    }

    fn place(&mut self) -> Vec<Step> {
        let id = self.source.id();
        let mut steps = Vec::new();
        let mut lines = Vec::new();
        for _ in 0..self.source.rng.random_range(1..=Shop::LINES_MAX) {
            let (line, article) = (self.source.id(), self.source.pick(&ARTICLES));
            let quantity = self.source.rng.random_range(1..10);
            steps.push(insert(ORDER_LINES, line, vec![value(id), value(article), value(quantity)]));
            lines.push(line);
        }
        let order = Order {
            id,
            customer: self.source.pick(&NAMES),
            status: "new",
            cents: self.source.rng.random_range(100..50_000),
            placed_at: now(),
            lines,
        };
        steps.insert(0, insert(ORDERS, id, order.row()));
        self.open.push(order);
        steps
    }

    fn cancel(&mut self, at: usize) -> Vec<Step> {
        let order = self.open.swap_remove(at);
        let lines = order.lines.iter().map(|line| delete(ORDER_LINES, *line));
        lines.chain([delete(ORDERS, order.id)]).collect()
    }

    fn move_on(&mut self, at: usize) -> Vec<Step> {
        let order = &mut self.open[at];
        order.status = if order.status == "new" { "paid" } else { "shipped" };
        let step = update(ORDERS, order.id, &format!("status = '{}'", order.status), order.row());
        if order.status == "shipped" {
            self.open.swap_remove(at);
        }
        vec![step]
    }
}

impl Application for Shop {
    fn name(&self) -> &'static str {
        "shop"
    }

    fn opening(&mut self) -> Vec<Step> {
        (0..Shop::ORDERS_AT_FIRST).flat_map(|_| self.place()).collect()
    }

    fn next(&mut self) -> Vec<Step> {
        if self.open.is_empty() || self.source.percent(50) {
            return self.place();
        }
        let at = self.source.rng.random_range(0..self.open.len());
        if self.source.percent(30) {
            self.cancel(at)
        } else {
            self.move_on(at)
        }
    }
}

/// Writes events as JSON, corrects some of them, and keeps only the newest.
struct Journal {
    source: Source,
    kept: VecDeque<Event>,
}

struct Event {
    id: u64,
    happened_at: Option<String>,
    who: &'static str,
    retries: u32,
    note: Option<String>,
}

impl Event {
    fn row(&self) -> Row {
        vec![self.happened_at.clone(), Some(self.body()), self.note.clone()]
    }

    /// As MySQL prints JSON: shorter keys first, a space behind each `:` and `,`.
    fn body(&self) -> String {
        format!(
            r#"{{"who": "{}", "tags": ["demo", null, 1.5], "retries": {}}}"#,
            self.who, self.retries
        )
    }
}

impl Journal {
    const EVENTS_KEPT: usize = 400;

    fn new(source: Source) -> Journal {
        Journal {
            source,
            kept: VecDeque::new(),
        }
    }

    fn write(&mut self) -> Step {
        let id = self.source.id();
        let event = Event {
            id,
            happened_at: now(),
            who: self.source.pick(&NAMES),
            retries: 0,
            note: self
                .source
                .percent(50)
                .then(|| format!("event {id}: C:\\temp, 100 % 'quoted'")),
        };
        let step = insert(EVENTS, id, event.row());
        self.kept.push_back(event);
        step
    }

    fn correct(&mut self) -> Step {
        let at = self.source.rng.random_range(0..self.kept.len());
        let event = &mut self.kept[at];
        event.retries += 1;
        let set = format!("body = JSON_SET(body, '$.retries', {})", event.retries);
        update(EVENTS, event.id, &set, event.row())
    }
}

impl Application for Journal {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn opening(&mut self) -> Vec<Step> {
        (0..Journal::EVENTS_KEPT).map(|_| self.write()).collect()
    }

    fn next(&mut self) -> Vec<Step> {
        let mut steps = vec![self.write(), self.correct()];
        if self.kept.len() > Journal::EVENTS_KEPT
            && let Some(oldest) = self.kept.pop_front()
        {
            steps.push(delete(EVENTS, oldest.id));
        }
        steps
    }
}
