#!/bin/sh
# The browser of the tests: Debian's chromium with its driver, installed when no such browser is there.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done

ask="The browser tests need Chromium: run \`apt-get install chromium chromium-driver\` as root (or install Google Chrome), then try again."
command -v apt-get >/dev/null 2>&1 || { echo "$ask" >&2; exit 2; }
if [ "$(id -u)" = 0 ]; then
    root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    root="sudo"
else
    echo "$ask" >&2
    exit 2
fi

echo "Installing Debian's chromium for the browser tests (once) ..."
export DEBIAN_FRONTEND=noninteractive
$root apt-get update -qq && $root apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null && exit 0
echo "$ask" >&2
exit 2
