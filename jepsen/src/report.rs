//! The report of a run: one page that needs nothing beside itself.
//!
//! ```text
//! verdict, figures -> latency of every operation -> quantiles -> rate        faults as bands behind all three
//!                  -> checkers, faults -> findings, each with the smallest history that still shows it
//! ```
//!
//! Invariants: everything drawn comes from the history and the results; text from them is escaped. Of very many
//! operations a part is drawn, and the page says so.
//! Not here: drawing (`chart`, `timeline`).

mod chart;
mod timeline;

use crate::{
    checker::{Valid, Verdict},
    history::{History, Op},
    run::Results,
};
use chart::Band;
use std::{collections::BTreeMap, fmt::Write};

/// The page.
///
/// Errors: the history does not pair.
pub fn page(history: &History, results: &Results) -> Result<String, String> {
    let ops = history.ops().map_err(|e| e.to_string())?;
    let bands = bands(history);
    let mut page = String::with_capacity(1 << 20);
    page += "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n";
    page += "<meta name=\"viewport\" content=\"width=device-width\">\n";
    let _ = write!(page, "<title>Annal: {}</title>\n<style>{STYLE}</style></head><body>\n", title(results));
    page += &head(results);
    page += &section("Latency of every operation", &chart::latency(&ops, &bands));
    page += &section("Quantiles of what was answered, by second", &chart::quantiles(&ops, &bands));
    page += &section("Operations a second", &chart::rate(&ops, &bands));
    page += &section("Checkers", &checks(&results.checks));
    page += &section("Faults", &faults(results));
    page += &findings(&ops, results);
    page += "</body></html>\n";
    Ok(page)
}

const STYLE: &str = include_str!("report/style.css");

fn title(results: &Results) -> String {
    let asked = &results.asked;
    let nemesis = if asked.nemesis.is_empty() { "no faults".to_owned() } else { asked.nemesis.join(", ") };
    escape(&format!("{} under {nemesis}", asked.workloads.join(", ")))
}

fn head(results: &Results) -> String {
    let (class, verdict) = match results.valid {
        Valid::True => ("true", "valid"),
        Valid::False => ("false", "not valid"),
        Valid::Unknown => ("unknown", "unknown"),
    };
    let asked = &results.asked;
    let mut facts = vec![
        (results.ops, "operations"),
        (results.ok, "ok"),
        (results.fail, "fail"),
        (results.info, "info"),
        (results.faults.values().map(|tally| tally.installed).sum(), "faults"),
    ];
    facts.push((asked.seconds, "seconds"));
    let facts: String =
        facts.iter().map(|(count, of)| format!("<div><b>{count}</b><span>{of}</span></div>")).collect();
    let why: String = results.why.iter().map(|why| format!("<li>{}</li>", escape(why))).collect();
    let command = format!(
        "annal-jepsen run --workload {} --nemesis {} --nodes {} --time-limit {} --seed {} --net {}{}{}",
        asked.workloads.join(","),
        if asked.nemesis.is_empty() { "none".to_owned() } else { asked.nemesis.join(",") },
        asked.nodes,
        asked.seconds,
        asked.seed,
        asked.net,
        if asked.regions > 1 { format!(" --way-ms {}", asked.way_ms) } else { String::new() },
        asked.mutant.as_ref().map(|mutant| format!(" --mutant {mutant}")).unwrap_or_default()
    );
    format!(
        "<header class=\"{class}\"><p class=\"verdict\">{verdict}</p><h1>{}</h1><p><code>{}</code> · {}</p></header>\n\
         <div class=\"facts\">{facts}</div>\n<ul class=\"why\">{why}</ul>\n",
        title(results),
        escape(&command),
        escape(&asked.binary)
    )
}

fn section(title: &str, body: &str) -> String {
    format!("<section><h2>{title}</h2>\n{body}</section>\n")
}

fn checks(checks: &BTreeMap<String, Verdict>) -> String {
    let row = |(name, verdict): (&String, &Verdict)| {
        let class = match verdict.valid {
            Valid::True if verdict.checked == 0 => "idle",
            Valid::True => "true",
            Valid::False => "false",
            Valid::Unknown => "unknown",
        };
        format!(
            "<tr class=\"{class}\"><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(name),
            verdict.checked,
            verdict.found
        )
    };
    let rows: String = checks.iter().map(row).collect();
    format!("<table><tr><th>checker</th><th>looked at</th><th>found</th></tr>\n{rows}</table>\n")
}

fn faults(results: &Results) -> String {
    let rows: String = results
        .faults
        .iter()
        .map(|(family, tally)| {
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                escape(family),
                tally.installed,
                tally.skipped,
                tally.indeterminate
            )
        })
        .collect();
    format!(
        "<table><tr><th>family</th><th>installed</th><th>skipped</th><th>indeterminate</th></tr>\n{rows}</table>\n"
    )
}

/// Findings drawn at most.
const DRAWN_MAX: usize = 8;

fn findings(ops: &[Op], results: &Results) -> String {
    let mut text = String::new();
    let mut drawn = std::collections::BTreeSet::new();
    for (checker, finding) in
        results.checks.iter().flat_map(|(name, v)| v.findings.iter().map(move |f| (name, f)))
    {
        let fresh = drawn.len() < DRAWN_MAX && drawn.insert((finding.workload.clone(), finding.key));
        let timeline = if fresh { timeline::draw(ops, finding) } else { String::new() };
        let _ = writeln!(
            text,
            "<article><h3>{} · {}</h3><p>{} <small>{} {}</small></p>{timeline}</article>",
            escape(checker),
            escape(&finding.anomaly),
            escape(&finding.why),
            escape(&finding.workload),
            escape(&format!("operations {:?}", finding.ops)),
        );
    }
    if text.is_empty() { text } else { section("Findings", &text) }
}

/// From the start of a fault to its end.
fn bands(history: &History) -> Vec<Band> {
    let mut bands: Vec<Band> = Vec::new();
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    for event in history.faults() {
        match event.value["phase"].as_str() {
            Some("start") => {
                open.insert(&event.f, bands.len());
                let what = format!("{} {}", event.f, event.value["what"]);
                bands.push(Band { from: event.time, to: u64::MAX, name: event.f.clone(), what });
            }
            Some("end") => {
                if let Some(at) = open.remove(event.f.as_str()) {
                    bands[at].to = event.time;
                }
            }
            _ => {}
        }
    }
    bands
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests;
