//! A wish at the cluster, asked again until it is fulfilled, with how far it is.
//!
//! The cluster keeps the wish: a run that is cut off changes nothing about it, and the same command goes on watching.
//! Whatever node is asked may fail meanwhile; its silence is borne for a while.

use super::{
    Done,
    server::{Answer, Client},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

/// One request that may be sent again.
pub(super) struct Wish<'a> {
    pub(super) method: &'a str,
    pub(super) path: String,
    pub(super) body: String,
    /// What it is, for people.
    pub(super) what: String,
}

/// How far a wish is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Far {
    /// Steps that are left.
    pub(super) left: u64,
    /// What is under way.
    pub(super) now: String,
}

/// How long the node may go on with a wish before it tells that it is not done yet.
const PATIENCE_SECONDS: u64 = 2;
/// How long nobody may answer.
const SILENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

impl Wish<'_> {
    /// Asks until it is done; `far` reads from `GET /annal/v1/cluster` how far it is.
    ///
    /// Errors: the cluster refuses, the node cannot be reached, or nothing was heard for a minute.
    pub(super) fn fulfil(&self, client: &Client, json: bool, far: impl Fn(&Value) -> Far) -> Done {
        let mut shown = Shown::new(&self.what, json);
        let path = format!("{}?timeout={PATIENCE_SECONDS}", self.path);
        let (mut heard, mut reached) = (Instant::now(), false);
        loop {
            // Seen before it is asked for: the first look counts what there is to do.
            let seen = client.topology().map(|cluster| far(&cluster));
            if let Ok(far) = seen {
                shown.tell(&far);
            }
            let asked = client.ask(self.method, &path, &self.body);
            reached |= asked.is_ok();
            match asked {
                Ok(Answer { status: 200, .. }) => {
                    shown.done();
                    return Ok(());
                }
                Ok(answer) if answer.status == 202 => heard = Instant::now(),
                Ok(answer) if !answer.is_passing() => return Err(answer.failure(&self.what)),
                Ok(answer) if heard.elapsed() > SILENCE => return Err(answer.failure(&self.what)),
                // Most likely the address is wrong.
                Err(error) if !reached => return Err(format!("{}: {error}", self.what).into()),
                Err(error) if heard.elapsed() > SILENCE => {
                    return Err(format!("{}: {error}; run it again to go on", self.what).into());
                }
                Ok(_) | Err(_) => {}
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// A bar where somebody looks, else a line for each change.
struct Shown {
    what: String,
    json: bool,
    bar: Option<ProgressBar>,
    last: Option<Far>,
}

impl Shown {
    fn new(what: &str, json: bool) -> Self {
        let style = "{msg}  {bar:24}  {pos}/{len}  {elapsed}";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0).with_style(style));
        Shown { what: what.to_owned(), json, bar, last: None }
    }

    fn tell(&mut self, far: &Far) {
        if self.last.as_ref() == Some(far) {
            return;
        }
        let now = if far.now.is_empty() { String::new() } else { format!(": {}", far.now) };
        match &self.bar {
            Some(bar) => {
                let all = bar.length().unwrap_or(0).max(far.left);
                bar.set_length(all);
                bar.set_position(all - far.left);
                bar.set_message(format!("{}{now}", self.what));
            }
            None => eprintln!("{}: {} left{now}", self.what, far.left),
        }
        self.last = Some(far.clone());
    }

    fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        match self.json {
            true => println!("{}", serde_json::json!({"done": true})),
            false => println!("{}: done", self.what),
        }
    }
}
