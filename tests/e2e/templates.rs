//! Chat templates from the outside: what a template costs is bounded, and what is wrong with one is named.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use softshard_e2e::{Background, Said, World};

/// A world whose tokenizer has this chat template, with so many rows.
fn world(template: &str, rows: usize) -> World {
    let world = World::new();
    fs::write(world.path("data/tokenizer/chat_template.jinja"), template).expect("the template is written");
    let row = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let text: String = (0..rows).map(|index| row.replace("\"a\"", &format!("\"a{index}\"")) + "\n").collect();
    fs::write(world.path("rows.jsonl"), text).expect("the rows are written");
    world
}

const CHAT: [&str; 2] = ["data.template=\"chat\"", "data.instructions=\"rows.jsonl\""];

fn prepare(world: &World, more: &[&str]) -> Said {
    world.run("prepare", &[&CHAT, more].concat())
}

#[test]
fn hostile_templates_end_within_two_seconds_before_anything_is_written() {
    for template in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set n = namespace(x='xxxxxxxx') %}{% for a in range(100) %}{% set n.x = n.x + n.x %}{% endfor %}",
    ] {
        let world = world(template, 3);
        softshard_e2e::binary();
        let started = Instant::now();
        prepare(&world, &[]).failed(3, &["chat_template.jinja", "line 1", "hint:"]);
        assert!(started.elapsed() < Duration::from_secs(2), "{template}: {:?}", started.elapsed());
        assert!(!world.path("run/sequences").exists(), "nothing is written");
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    prepare(&world(&deep, 3), &[]).failed(3, &["chat_template.jinja", "levels of nesting"]);
}

#[test]
fn a_slow_template_is_stopped_at_once() {
    // Each row stays just under the limit.
    let slow = "{% for a in range(90) %}{% for b in range(10000) %}{% endfor %}{% endfor %}{% for m in messages %}\
                {{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let world = world(slow, 3000);
    let mut command = world.stage("prepare", &CHAT);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Background::start(&mut command);
    std::thread::sleep(Duration::from_secs(2));
    let stopped = Instant::now();
    let id = running.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
    running.end().failed(75, &["interrupted"]);
    assert!(stopped.elapsed() < Duration::from_secs(2), "{:?}", stopped.elapsed());
}

#[test]
fn a_date_and_variables_come_from_the_recipe() {
    let template = "{{ strftime_now('%Y') }}{{ style }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant:{% endif %}";
    let world = world(template, 3);
    prepare(&world, &[]).failed(3, &["`strftime_now`", "data.template_date"]);
    let learn = "data.split={ valid_rows = 0, seed = 1 }";
    let variables = "data.template_variables={ style = \"brief\" }";
    let settings = ["data.template_date=\"2025-01-31\"", variables, learn];
    prepare(&world, &settings).succeeded();
    prepare(&world, &["data.template_date=\"soon\""]).failed(2, &["template_date", "\"soon\""]);
    prepare(&world, &["data.template_variables={ messages = 1 }"])
        .failed(2, &["template_variables", "`messages`"]);
}

#[test]
fn a_template_is_read_only_where_it_is_used() {
    let world = world("{% generation %}", 3);
    world.run("prepare", &[]).succeeded();
    prepare(&world, &[]).failed(3, &["chat_template.jinja", "line 1", "endgeneration"]);
}
