//! Renders chat templates for `tests/peers/templates.py`: a JSON list of jobs on standard input, what became of each on
//! standard output.
//!
//! A job has `template`, and may have `messages`, `tools`, `documents`, `variables`, `special_tokens`, `date` and
//! `add_generation_prompt`. A result has `text` and `generated` (characters from and to), or `error`.

use std::collections::BTreeMap;
use std::io::{Read, Write};

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
    let outcomes: Vec<Outcome> = jobs.into_iter().map(render).collect();
    let output = serde_json::to_string(&outcomes).expect("texts and numbers");
    std::io::stdout().write_all(output.as_bytes()).expect("standard output can be written");
}

fn render(job: Job) -> Outcome {
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
    match template.and_then(|template| template.render(&conversation, turns, job.add_generation_prompt)) {
        Ok(rendering) => {
            let characters = |byte: usize| rendering.text[..byte].chars().count();
            let generated =
                rendering.generated.iter().map(|range| [characters(range.start), characters(range.end)]);
            Outcome::Rendered { generated: generated.collect(), text: rendering.text }
        }
        Err(error) => Outcome::Failed { error: error.to_string() },
    }
}
