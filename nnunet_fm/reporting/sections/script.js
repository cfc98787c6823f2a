// Sorts tables and filters classes; without it the page shows the same.
(function () {
  "use strict";
  document.querySelectorAll("table.sortable").forEach(function (table) {
    table.querySelectorAll("thead tr:last-child th").forEach(function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.innerHTML = head.innerHTML;
      head.innerHTML = "";
      head.appendChild(button);
      button.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("th[aria-sort]").forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        var body = table.tBodies[0];
        Array.from(body.rows)
          .sort(function (one, two) {
            var a = one.cells[column].dataset.value, b = two.cells[column].dataset.value;
            if (a === undefined || b === undefined) {
              if (a !== b) { return a === undefined ? 1 : -1; }  // what has no number stays at the end
              a = one.cells[column].textContent; b = two.cells[column].textContent;
              return (down ? -1 : 1) * a.localeCompare(b, undefined, { numeric: true });
            }
            return (down ? -1 : 1) * (a - b);
          })
          .forEach(function (row) { body.appendChild(row); });
      });
    });
  });
  document.querySelectorAll("table[data-filter]").forEach(function (table) {
    var words = new Set(Array.from(table.tBodies[0].rows, function (row) { return row.dataset.group; }));
    if (words.size < 2) { return; }
    var label = document.createElement("label"), select = document.createElement("select");
    label.className = "filter";
    label.textContent = table.dataset.filter;
    select.add(new Option("all", ""));
    words.forEach(function (word) { select.add(new Option(word, word)); });
    label.appendChild(select);
    table.parentNode.insertBefore(label, table);
    select.addEventListener("change", function () {
      Array.from(table.tBodies[0].rows).forEach(function (row) {
        row.hidden = select.value !== "" && row.dataset.group !== select.value;
      });
    });
  });
})();
