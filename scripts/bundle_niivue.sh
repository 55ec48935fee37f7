#!/bin/sh
# Make tumorchain_agent/assets/viewer/niivue.min.js anew: scripts/bundle_niivue.sh [VERSION]. Needs node and npm.
set -eu
version=${1:-0.69.0}
assets=$(cd "$(dirname "$0")/../tumorchain_agent/assets/viewer" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --ignore-scripts "@niivue/niivue@$version" esbuild@0.28.2 >/dev/null
echo 'export { Niivue, MULTIPLANAR_TYPE, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";' >entry.js
node_modules/@esbuild/*/bin/esbuild entry.js --bundle --minify --format=esm --target=es2022 --log-limit=0 \
  --legal-comments=none --outfile="$assets/niivue.min.js" \
  --banner:js="/* NiiVue $version (BSD-2-Clause) with its dependencies; licences in niivue-license.txt and niivue-dependencies.txt */"
{
  echo "niivue.min.js is NiiVue $version (BSD-2-Clause), bundled and minified with the packages below."
  for package in gl-matrix nifti-reader-js fflate array-equal @lukeed/uuid @ungap/structured-clone zarrita \
    @zarrita/storage numcodecs unzipit uzip-module reference-spec-reader; do
    folder=node_modules/$package
    printf '\n==== %s %s ====\n\n' "$package" "$(node -p "require('./$folder/package.json').version")"
    cat "$folder"/[Ll][Ii][Cc][Ee][Nn][Ss][Ee]*
  done
} >"$assets/niivue-dependencies.txt"
