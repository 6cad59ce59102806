//! How an event is written to the log: a line of JSON or of logfmt, with the keys that the server's other lines have.

use crate::engine::{Event, Value};
use std::fmt::Write;

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Logfmt,
}

/// Appends a line, its end included.
pub fn write(event: &Event, form: Form, pid: u32, out: &mut String) {
    let timestamp = prost_types::Timestamp {
        seconds: event.wall_ms.div_euclid(1000),
        nanos: event.wall_ms.rem_euclid(1000) as i32 * 1_000_000,
    };
    // Writing to a string cannot fail.
    let _ = match form {
        Form::Json => json(event, &timestamp, pid, out),
        Form::Logfmt => logfmt(event, &timestamp, pid, out),
    };
    out.push('\n');
}

fn json(event: &Event, timestamp: &prost_types::Timestamp, pid: u32, out: &mut String) -> std::fmt::Result {
    write!(out, r#"{{"event": "{}""#, event.name)?;
    for (name, value) in &event.fields {
        write!(out, r#", "{name}": "#)?;
        match value {
            Value::Text(text) => out.push_str(&quoted(text)),
            Value::Int(n) => write!(out, "{n}")?,
            Value::Flag(flag) => write!(out, "{flag}")?,
            Value::Times(times) => {
                let times: Vec<String> = times.iter().map(|(k, v)| format!(r#""{k}": {v}"#)).collect();
                write!(out, "{{{}}}", times.join(", "))?;
            }
        }
    }
    write!(out, r#", "level": "info", "timestamp": "{timestamp}", "pid": {pid}}}"#)
}

fn logfmt(event: &Event, timestamp: &prost_types::Timestamp, pid: u32, out: &mut String) -> std::fmt::Result {
    write!(out, "timestamp={timestamp} level=info event={} pid={pid}", event.name)?;
    for (name, value) in &event.fields {
        match value {
            // Quoted as soon as it is more than a word, so that no text can look like another field.
            Value::Text(text) if is_word(text) => write!(out, " {name}={text}")?,
            Value::Text(text) => write!(out, " {name}={}", quoted(text))?,
            Value::Int(n) => write!(out, " {name}={n}")?,
            Value::Flag(flag) => write!(out, " {name}={flag}")?,
            Value::Times(times) => times.iter().try_for_each(|(k, v)| write!(out, " {name}.{k}={v}"))?,
        }
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'=' | b'\\'))
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("every string is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_what_the_event_says_and_nothing_can_pass_for_another_field() {
        let fields = vec![
            ("session", Value::Text("s-1".into())),
            ("owner", Value::Text("a \"b\"\nouter=1".into())),
            ("turn", Value::Int(2)),
            ("late", Value::Flag(false)),
            ("timings", Value::Times([("engine".to_owned(), 1.5), ("tool".to_owned(), 2.0)].into())),
        ];
        let event = Event::of("turn_done", fields, 1_700_000_000_123);
        let (mut json, mut logfmt) = (String::new(), String::new());
        write(&event, Form::Json, 7, &mut json);
        write(&event, Form::Logfmt, 7, &mut logfmt);
        assert_eq!(
            json,
            "{\"event\": \"turn_done\", \"session\": \"s-1\", \"owner\": \"a \\\"b\\\"\\nouter=1\", \"turn\": 2, \
             \"late\": false, \"timings\": {\"engine\": 1.5, \"tool\": 2}, \"level\": \"info\", \
             \"timestamp\": \"2023-11-14T22:13:20.123Z\", \"pid\": 7}\n"
        );
        assert_eq!(
            logfmt,
            "timestamp=2023-11-14T22:13:20.123Z level=info event=turn_done pid=7 session=s-1 \
             owner=\"a \\\"b\\\"\\nouter=1\" turn=2 late=false timings.engine=1.5 timings.tool=2\n"
        );
    }
}
