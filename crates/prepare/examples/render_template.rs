//! Renders chat templates for `tests/peers/templates.py`: a JSON list of jobs on standard input, what became of each on
//! standard output.
//!
//! With `--times N` each job is rendered N times more, and the mean time is said on standard error.
//!
//! A job has `template`, and may have `messages`, `tools`, `documents`, `variables`, `special_tokens`, `date` and
//! `add_generation_prompt`. A result has `text` and `generated` (characters from and to), or `error`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use softshard_prepare::{ChatTemplate, Conversation, DataConfig, Message, Value};

#[derive(Deserialize)]
struct Job {
    template: String,
    #[serde(default)]
    messages: Vec<Value>,
    tools: Option<Value>,
    documents: Option<Value>,
    #[serde(default)]
    variables: BTreeMap<String, Value>,
    #[serde(default)]
    special_tokens: BTreeMap<String, String>,
    date: Option<String>,
    #[serde(default)]
    add_generation_prompt: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Rendered { text: String, generated: Vec<[usize; 2]> },
    Failed { error: String },
}

fn main() {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).expect("standard input can be read");
    let jobs: Vec<Job> = serde_json::from_str(&input).expect("a list of jobs");
    let mut arguments = std::env::args().skip_while(|argument| argument != "--times");
    let times: u32 = arguments.nth(1).map_or(0, |times| times.parse().expect("a number after `--times`"));
    let outcomes: Vec<Outcome> = jobs.into_iter().map(|job| render(job, times)).collect();
    let output = serde_json::to_string(&outcomes).expect("texts and numbers");
    std::io::stdout().write_all(output.as_bytes()).expect("standard output can be written");
}

fn render(job: Job, times: u32) -> Outcome {
    let data =
        DataConfig { template_date: job.date, ..serde_json::from_str("{}").expect("all keys have defaults") };
    let message = |message| match message {
        Value::Object(fields) => Message { fields, trained: None },
        other => panic!("expected a message as an object, found {}", other.kind()),
    };
    let conversation = Conversation {
        messages: job.messages.into_iter().map(message).collect(),
        tools: job.tools,
        documents: job.documents,
        variables: job.variables.into_iter().collect(),
    };
    let template =
        ChatTemplate::new(job.template, job.special_tokens).map(|template| template.configured(&data));
    let turns = conversation.messages.len();
    let render = |template: &ChatTemplate| template.render(&conversation, turns, job.add_generation_prompt);
    if let (Ok(template), true) = (&template, times > 0) {
        let started = Instant::now();
        (0..times).for_each(|_| drop(render(template)));
        eprintln!("{:.2} µs each", started.elapsed().as_secs_f64() * 1e6 / f64::from(times));
    }
    match template.and_then(|template| render(&template)) {
        Ok(rendering) => {
            let characters = |byte: usize| rendering.text[..byte].chars().count();
            let generated =
                rendering.generated.iter().map(|range| [characters(range.start), characters(range.end)]);
            Outcome::Rendered { generated: generated.collect(), text: rendering.text }
        }
        Err(error) => Outcome::Failed { error: error.to_string() },
    }
}
