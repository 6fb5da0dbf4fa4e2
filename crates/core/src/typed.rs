//! What a user types to give a flow a command: words for a shell or, where the flow itself was typed
//! into an R session, a call of `run()`. Which commands and options there are is the command line's.

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:=,@%+-<>".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `flow.py resume --with batch`
pub fn in_shell(command: &str, words: &[String]) -> String {
    let words = words.iter().map(|word| format!(" {}", quoted(word)));
    words.fold(command.to_owned(), |typed, word| typed + &word)
}

/// `run(HelloFlow, resume = TRUE, with = "batch")`: a flow is a variable of its name.
pub fn in_session(flow: &str, words: &[String]) -> String {
    let mut arguments: Vec<(String, Vec<String>)> = Vec::new();
    let mut rest = words.iter().peekable();
    while let Some(word) = rest.next() {
        let name = word.trim_start_matches('-').replace('-', "_");
        let value = match rest.peek() {
            Some(next) if !next.starts_with('-') && (word.starts_with('-') || is_listing(word)) => {
                let value = text(next);
                rest.next();
                value
            }
            _ => "TRUE".to_owned(),
        };
        match arguments.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None if word == "run" => {}
            None => arguments.push((name, vec![value])),
        }
    }
    let arguments = arguments.into_iter().map(|(name, values)| match values.as_slice() {
        [value] => format!(", {name} = {value}"),
        values => format!(", {name} = c({})", values.join(", ")),
    });
    format!("run({flow}{})", arguments.collect::<String>())
}

/// Commands whose argument follows them without a name.
fn is_listing(word: &str) -> bool {
    ["batch", "kubernetes", "logs"].contains(&word)
}

fn text(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn words_for_a_shell_are_quoted_where_they_must_be() {
        let words = ["--with".to_owned(), "kubernetes:image=a b".to_owned(), "it's".to_owned(), String::new()];
        assert_eq!(in_shell("python flow.py", &words), r"python flow.py --with 'kubernetes:image=a b' 'it'\''s' ''");
    }

    #[test]
    fn words_for_a_session_are_arguments_of_run() {
        let typed = |text: &str| in_session("Hello", &words(text));
        assert_eq!(
            typed("--datastore s3 resume --origin-run-id 4 --with batch --with retry:times=2"),
            r#"run(Hello, datastore = "s3", resume = TRUE, origin_run_id = "4", with = c("batch", "retry:times=2"))"#
        );
        assert_eq!(typed("batch kill --run-id 3"), r#"run(Hello, batch = "kill", run_id = "3")"#);
        assert_eq!(typed("run --with kubernetes"), r#"run(Hello, with = "kubernetes")"#);
        assert_eq!(typed("show"), "run(Hello, show = TRUE)");
        let quotes = in_session("Hello", &["--with".to_owned(), r#"a:b="c\d""#.to_owned()]);
        assert_eq!(quotes, r#"run(Hello, with = "a:b=\"c\\d\"")"#);
    }
}
