//! transformers' `tojson`: Python's `json.dumps` with `ensure_ascii=False`.

use std::fmt::Write;

use super::calls::Args;
use super::filters::{is_less, sorted};
use super::limits::{Meter, Outcome, type_error};
use super::printing::float_repr;
use super::value::{Str, Val};

struct Writer<'a, 't> {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: Str<'t>,
    key_separator: Str<'t>,
    sort_keys: bool,
    meter: &'a Meter,
}

/// `value | tojson(…)`.
pub(super) fn tojson<'t>(value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = args.bind("tojson", names, 0)?;
    let indent = match indent {
        None | Some(Val::None) => None,
        Some(Val::Str(text)) => Some(text.to_string()),
        Some(other) => match other.as_int() {
            Some(width) => {
                let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
                meter.text(width)?;
                Some(" ".repeat(width))
            }
            None => return type_error("expected a number or a text as `indent`"),
        },
    };
    let (item, key) = match separators {
        None | Some(Val::None) => {
            (Str::Borrowed(if indent.is_some() { "," } else { ", " }), Str::Borrowed(": "))
        }
        Some(separators) => match separators.items() {
            Some([Val::Str(item), Val::Str(key)]) => (item.clone(), key.clone()),
            _ => return type_error("expected two texts as `separators`"),
        },
    };
    let mut writer = Writer {
        out: String::new(),
        ensure_ascii: ensure_ascii.is_some_and(|value| value.is_true()),
        indent,
        item_separator: item,
        key_separator: key,
        sort_keys: sort_keys.is_some_and(|value| value.is_true()),
        meter,
    };
    writer.value(value, 1)?;
    Ok(Val::text(writer.out))
}

impl<'t> Writer<'_, 't> {
    fn value(&mut self, value: &Val<'t>, level: usize) -> Outcome<()> {
        self.meter.steps(1)?;
        match value {
            Val::None => self.out.push_str("null"),
            Val::Bool(true) => self.out.push_str("true"),
            Val::Bool(false) => self.out.push_str("false"),
            Val::Int(value) => write!(self.out, "{value}").expect("a string takes all"),
            Val::Float(value) => self.out.push_str(&json_float(*value)),
            Val::Str(text) | Val::Markup(text) => self.text(text)?,
            Val::List(seq) | Val::Tuple(seq) => {
                self.all('[', ']', seq.items.len(), level, |writer, index| {
                    writer.value(&seq.items[index], level + 1)
                })?;
            }
            Val::Dict(dict) => {
                let mut entries: Vec<&(Val<'t>, Val<'t>)> = dict.entries.iter().collect();
                if self.sort_keys {
                    let meter = self.meter;
                    entries = sorted(entries, &mut |left, right| is_less(&left.0, &right.0, meter))?;
                }
                self.all('{', '}', entries.len(), level, |writer, index| {
                    let (key, value) = entries[index];
                    writer.key(key)?;
                    let separator = writer.key_separator.clone();
                    writer.out.push_str(&separator);
                    writer.value(value, level + 1)
                })?;
            }
            other => {
                return type_error(format!("Object of type {} is not JSON serializable", other.type_name()));
            }
        }
        self.meter.size(self.out.len())
    }

    fn all(
        &mut self,
        begin: char,
        end: char,
        count: usize,
        level: usize,
        mut item: impl FnMut(&mut Self, usize) -> Outcome<()>,
    ) -> Outcome<()> {
        self.out.push(begin);
        for index in 0..count {
            if index > 0 {
                let separator = self.item_separator.clone();
                self.out.push_str(&separator);
            }
            self.line(level)?;
            item(self, index)?;
        }
        if count > 0 {
            self.line(level - 1)?;
        }
        self.out.push(end);
        Ok(())
    }

    fn line(&mut self, level: usize) -> Outcome<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        self.meter.text(indent.len() * level)?;
        self.meter.size(self.out.len())?;
        self.out.push('\n');
        for _ in 0..level {
            self.out.push_str(indent);
        }
        Ok(())
    }

    fn key(&mut self, key: &Val<'t>) -> Outcome<()> {
        match key {
            Val::Str(text) | Val::Markup(text) => self.text(text),
            Val::None => self.text("null"),
            Val::Bool(value) => self.text(if *value { "true" } else { "false" }),
            Val::Int(value) => self.text(&value.to_string()),
            Val::Float(value) => self.text(&json_float(*value)),
            other => {
                let found = other.type_name();
                type_error(format!("keys must be str, int, float, bool or None, not {found}"))
            }
        }
    }

    fn text(&mut self, text: &str) -> Outcome<()> {
        self.meter.text(text.len())?;
        self.out.push('"');
        let mut from = 0;
        for (at, character) in text.char_indices() {
            let is_plain = !matches!(character, '"' | '\\' | '\0'..='\u{1f}');
            if is_plain && (!self.ensure_ascii || (' '..='~').contains(&character)) {
                continue;
            }
            self.out.push_str(&text[from..at]);
            from = at + character.len_utf8();
            self.escaped(character);
        }
        self.out.push_str(&text[from..]);
        self.out.push('"');
        Ok(())
    }

    fn escaped(&mut self, character: char) {
        match character {
            '"' => self.out.push_str("\\\""),
            '\\' => self.out.push_str("\\\\"),
            '\n' => self.out.push_str("\\n"),
            '\r' => self.out.push_str("\\r"),
            '\t' => self.out.push_str("\\t"),
            '\u{c}' => self.out.push_str("\\f"),
            '\u{8}' => self.out.push_str("\\b"),
            other => {
                let mut units = [0; 2];
                for unit in other.encode_utf16(&mut units) {
                    write!(self.out, "\\u{unit:04x}").expect("a string takes all");
                }
            }
        }
    }
}

fn json_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    float_repr(value)
}
