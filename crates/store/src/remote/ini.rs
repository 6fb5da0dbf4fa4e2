//! The format of AWS' configuration files: sections of `name = value`, nested values indented.

use std::collections::HashMap;

pub(super) type Sections = HashMap<String, HashMap<String, String>>;

/// Sections by name (`default`, `profile x`, `sso-session y`). A nested value reads as `outer.inner`.
pub(super) fn parse(text: &str) -> Sections {
    let mut sections = Sections::new();
    let mut section = String::new();
    let mut outer = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(section.clone()).or_default();
            outer.clear();
            continue;
        }
        let Some((name, value)) = trimmed.split_once('=') else { continue };
        let (name, value) = (name.trim().to_ascii_lowercase(), without_comment(value.trim()));
        let nested = line.starts_with([' ', '\t']) && !outer.is_empty();
        let key = if nested { format!("{outer}.{name}") } else { name.clone() };
        if !nested {
            outer = if value.is_empty() { name } else { String::new() };
        }
        sections.entry(section.clone()).or_default().insert(key, value.to_owned());
    }
    sections
}

fn without_comment(value: &str) -> &str {
    value.find(" #").or_else(|| value.find(" ;")).map_or(value, |at| value[..at].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_values_comments_and_nesting() {
        let text = "# a comment\n[default]\nregion = eu-west-1 # here\n\n[ profile  dev ]\naws_access_key_id=A=B\ns3 =\n  endpoint_url = http://x\nlast = 1\n";
        let sections = parse(text);
        assert_eq!(sections["default"]["region"], "eu-west-1");
        let dev = &sections["profile dev"];
        assert_eq!(dev["aws_access_key_id"], "A=B");
        assert_eq!(dev["s3.endpoint_url"], "http://x");
        assert_eq!(dev["last"], "1");
    }
}
