stub app.js
