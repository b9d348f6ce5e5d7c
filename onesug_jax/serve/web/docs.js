stub docs.js
